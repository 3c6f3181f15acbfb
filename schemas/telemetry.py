"""Records that a training process publishes: telemetry frames and the topology.

A frame holds one step's measurements of many layers, in columns with one entry per layer. A frame of one layer is
valid.
"""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from tamiyo.schemas.record import (
    MAX_LAYERS,
    Column,
    Count,
    Counts,
    Id,
    Ids,
    Milliseconds,
    NonNegative,
    NonNegatives,
    Ratio,
    Ratios,
    Real,
    Record,
    Sparse,
    Step,
    Text,
    fill_columns,
    require_columns,
)


class Frame(Record):
    """The fields that every telemetry record begins with."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    step: Annotated[Step, Field(description="Optimiser steps completed at the measurement.")]
    epoch: Annotated[Count, Field(description="Passes over the training data, counted from 0.")] = 0
    time_ms: Annotated[Milliseconds, Field(description="Event time, milliseconds since the epoch, UTC.")]
    companions: Annotated[
        list[Id],
        Field(
            max_length=8,
            description="Topics on which this run publishes a frame for every sampled step, this topic included. The "
            "watermark waits for the slowest of them; if empty, for those seen so far.",
        ),
    ] = []
    final: Annotated[bool, Field(description="The run's last frame on this topic.")] = False


EXECUTION_DEFAULTS: dict[str, Any] = {
    "seed_id": 0,
    "chunk_id": 0,
    "cache_hit_rate": 1.0,
    "error_count": 0,
    "total_executions": 1,
    "activation_variance": 0.0,
    "dead_neuron_ratio": 0.0,
    "avg_correlation": 0.5,
}
"""The specification's defaults for a column of KernelPerformance that a producer leaves out."""


class KernelPerformance(Frame):
    """How each layer executed since the last frame."""

    layer_id: Annotated[Ids, Field(description="Layers; every column has one entry per layer, in this order.")]
    seed_id: Annotated[Counts, Field(description="The layer's measured seed; 0 if it has none.")] = []
    chunk_id: Annotated[
        Counts, Field(description="Measured chunk of the layer's activations; 0 means all of them.")
    ] = []
    execution_latency_ms: Annotated[NonNegatives, Field(description="Forward latency, ms.")]
    cache_hit_rate: Annotated[Ratios, Field(description="Kernel cache hits / look-ups.")] = []
    error_count: Annotated[Counts, Field(description="Kernel errors since the last frame.")] = []
    total_executions: Annotated[Counts, Field(description="Forward passes since the last frame.")] = []
    activation_variance: Annotated[NonNegatives, Field(description="Variance of the layer's output.")] = []
    dead_neuron_ratio: Annotated[
        Ratios, Field(description="Share of output units that are never positive in the batch.")
    ] = []
    avg_correlation: Annotated[Column, Field(description="Mean absolute correlation between output units.")] = []

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        return fill_columns(values, EXECUTION_DEFAULTS)

    @model_validator(mode="after")
    def _columns(self) -> Self:
        require_columns(
            self,
            len(self.layer_id),
            [
                "seed_id",
                "chunk_id",
                "execution_latency_ms",
                "cache_hit_rate",
                "error_count",
                "total_executions",
                "activation_variance",
                "dead_neuron_ratio",
                "avg_correlation",
            ],
        )
        return self


class CacheHitRates(Frame):
    """The host's kernel cache; counts are since the run began."""

    hits: Annotated[Count, Field(description="Look-ups found in memory.")]
    misses: Annotated[Count, Field(description="Look-ups that read the kernel store.")]
    evictions: Annotated[Count, Field(description="Kernels dropped because the cache was full.")]
    hit_rate: Annotated[Ratio, Field(description="hits / (hits + misses); 1 without any look-up.")]
    entries: Annotated[Count, Field(description="Kernels in memory.")]
    capacity: Annotated[Count, Field(description="Most kernels kept in memory.")]


class ErrorRecoveryEvent(Frame):
    """One error of a kernel, and how the host recovered."""

    layer_id: Annotated[Id, Field(description="The kernel's layer.")]
    seed_id: Annotated[Count, Field(description="The kernel's seed.")]
    kernel_id: Annotated[Id | None, Field(description="The kernel that failed; null if none was loaded.")] = None
    error_type: Annotated[Text, Field(description="Kind of error, e.g. non_finite or an exception's name.")]
    message: Annotated[Text, Field(description="The error message.")] = ""
    strategy: Annotated[Id, Field(description="Recovery: retry, fall_back, reload, reset or unload.")]
    success: Annotated[bool, Field(description="Whether the kernel works afterwards.")]
    recovery_time_ms: Annotated[NonNegative, Field(description="Duration of the recovery, ms.")]


OPTIONAL_HEALTH = ("kernel_latency_ms", "base_latency_ms", "twin_gain", "twin_steps", "twin_probability")
"""Columns of LayerHealth that are measured now and then; one that is missing or empty was not measured."""


class LayerHealth(Frame):
    """How each layer learns, and the state of its seeds."""

    layer_id: Annotated[Ids, Field(description="Layers; every column has one entry per layer, in this order.")]
    gradient_norm: Annotated[NonNegatives, Field(description="L2 norm of the layer's own gradient.")]
    update_ratio: Annotated[NonNegatives, Field(description="|parameter change of one step| / |parameters|.")]
    growth_score: Annotated[
        Sparse, Field(description="Estimated gain of a kernel at the layer (design, section 11); null: not measured.")
    ]
    contribution: Annotated[
        Sparse,
        Field(description="Held-out loss with the layer's active kernels off minus on, nats; null: not measured."),
    ]
    kernel_load: Annotated[Ratios, Field(description="Seeds in use / seeds.")]
    alpha: Annotated[Ratios, Field(description="Mean blending factor of the seeds in use; 0 without any.")]
    dormant_seeds: Annotated[Counts, Field(description="Seeds that are free to load.")]
    active_seeds: Annotated[Counts, Field(description="Seeds loading or active.")]
    fossilized_seeds: Annotated[Counts, Field(description="Seeds made permanent.")]
    error_seeds: Annotated[Counts, Field(description="Seeds in error recovery.")]
    parameters: Annotated[Counts, Field(description="The layer's own parameters, without kernels.")]
    kernel_parameters: Annotated[Counts, Field(description="Parameters of the layer's kernels.")]
    learning_rate_scale: Annotated[NonNegatives, Field(description="Layer learning rate / the optimiser's.")]
    kernel_latency_ms: Annotated[
        Sparse,
        Field(
            description="Forward time that the layer's active kernels add, measured in pairs with and without "
            "them, ms; null: not measured."
        ),
    ] = []
    base_latency_ms: Annotated[
        Sparse,
        Field(
            description="Forward time of the layer without its active kernels, in the same pairs, ms; null: not "
            "measured."
        ),
    ] = []

    twin_gain: Annotated[
        Sparse,
        Field(
            description="Gain of an adaptation of the layer, measured by a shadow twin that trained without it: "
            "log(loss without / loss with), nats; null: no measurement ended since the last frame."
        ),
    ] = []
    twin_steps: Annotated[
        list[Count | None],
        Field(
            max_length=MAX_LAYERS, description="Optimiser steps over which twin_gain was measured; null: not measured."
        ),
    ] = []
    twin_probability: Annotated[
        list[Ratio | None],
        Field(
            max_length=MAX_LAYERS,
            description="Probability with which the adaptation was chosen for a shadow twin; null: not measured.",
        ),
    ] = []

    @model_validator(mode="after")
    def _columns(self) -> Self:
        require_columns(self, len(self.layer_id), _HEALTH_COLUMNS)
        require_columns(self, len(self.layer_id), [name for name in OPTIONAL_HEALTH if getattr(self, name)])
        return self


_HEALTH_COLUMNS = [
    name for name in LayerHealth.model_fields if name not in {*Frame.model_fields, "layer_id", *OPTIONAL_HEALTH}
]


class ModelPerformance(Frame):
    """Loss, accuracy, speed and size of the whole model."""

    train_loss: Annotated[Real, Field(description="Loss on the training batch, nats; mean since the last frame.")]
    train_accuracy: Annotated[Ratio | None, Field(description="Accuracy on training batches; null: not measured.")] = (
        None
    )
    validation_loss: Annotated[
        Real | None, Field(description="Loss on held-out data, nats; null: not measured since the last frame.")
    ] = None
    validation_accuracy: Annotated[
        Ratio | None, Field(description="Accuracy on held-out data; null: not measured.")
    ] = None
    throughput: Annotated[NonNegative, Field(description="Samples a second since the last frame.")] = 0.0
    memory_bytes: Annotated[Count, Field(description="Memory of parameters, gradients and optimiser state.")] = 0
    parameters: Annotated[Count, Field(description="Trainable parameters, kernels included.")] = 0
    base_parameters: Annotated[Count, Field(description="Trainable parameters without kernels.")] = 0
    step_time_ms: Annotated[NonNegative, Field(description="Mean time of a training step without the SDK, ms.")] = 0.0
    overhead_ratio: Annotated[NonNegative, Field(description="Time spent in the SDK / training time without it.")] = 0.0
    dropped_records: Annotated[Count, Field(description="Records the SDK has dropped since the run began.")] = 0
    steps_since_adaptation: Annotated[
        Count | None, Field(description="Steps since the last executed adaptation; null before the first.")
    ] = None


class BlueprintOffer(Record):
    """A blueprint that fits a layer."""

    name: Annotated[Id, Field(description="Name of the blueprint in the host's catalogue.")]
    parameters: Annotated[Count, Field(description="Parameters that its kernel would add.")]
    flops: Annotated[Count, Field(description="Multiply-adds per sample that its kernel would add.")]


class LayerNode(Record):
    """One layer of the network."""

    layer_id: Annotated[Id, Field(description="The module's dotted name.")]
    type: Annotated[
        Id,
        Field(
            description="linear, conv1d to conv3d, conv_transpose1d to conv_transpose3d, attention, layer_norm, "
            "channel_norm or embedding; a reader treats any other as other."
        ),
    ]
    parameters: Annotated[Count, Field(description="The layer's own parameters, without kernels.")]
    input_shape: Annotated[
        list[Count], Field(max_length=8, description="Shape of one input sample, without the batch.")
    ]
    output_shape: Annotated[
        list[Count], Field(max_length=8, description="Shape of one output sample, without the batch.")
    ]
    seeds: Annotated[Count, Field(description="Number of slots for kernels.")]
    protected: Annotated[bool, Field(description="Whether the layer must not be adapted.")] = False
    # The default is not "{}": Apicurio 3 does not recognise a schema with that default as Avro.
    spec: Annotated[
        Text, Field(description="The layer's geometry as JSON, from which kernels are built; empty: not known.")
    ] = ""
    blueprints: Annotated[
        list[BlueprintOffer], Field(max_length=100, description="Blueprints that fit the layer.")
    ] = []


class LayerEdge(Record):
    """Data flow from one layer to another."""

    source: Annotated[Id, Field(description="layer_id where the data comes from.")]
    target: Annotated[Id, Field(description="layer_id where the data goes.")]
    kind: Annotated[Id, Field(description="data (traced), skip (passes a layer by) or order (fallback).")] = "data"


class ModelTopology(Record):
    """The network at the start of its run; it does not change during the run."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    topology_id: Annotated[Id, Field(description="Hash of layers and edges.")]
    time_ms: Annotated[Milliseconds, Field(description="When the run was attached, ms since the epoch, UTC.")]
    task: Annotated[Text, Field(description="What is trained, for people to read.")] = ""
    layers: Annotated[list[LayerNode], Field(min_length=1, max_length=MAX_LAYERS, description="In topology order.")]
    edges: Annotated[list[LayerEdge], Field(max_length=10 * MAX_LAYERS, description="Data flow between the layers.")]
    parameters: Annotated[Count, Field(description="Trainable parameters of the whole model at the start.")]
    parameter_budget: Annotated[Count, Field(description="Parameters that kernels may add in total.")]
    cooldown_steps: Annotated[Count, Field(description="Fewest steps between two adaptations of the run.")] = 0
    planned_steps: Annotated[Count | None, Field(description="Planned steps of the run; null: not known.")] = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known = {layer.layer_id for layer in self.layers}
        if len(known) != len(self.layers):
            raise ValueError("two layers share one layer_id")
        for edge in self.edges:
            if edge.source not in known or edge.target not in known:
                raise ValueError(f"edge {edge.source} -> {edge.target} names a layer that is not in the topology")
        return self
