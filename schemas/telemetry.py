"""What a training process tells: telemetry frames and the topology.

A frame is one step's measurement of many layers, as columns with one entry a layer. A frame of one layer is valid.
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
    """What every telemetry record begins with."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    step: Annotated[Step, Field(description="Optimiser steps done when this was measured.")]
    epoch: Annotated[Count, Field(description="Passes over the training data begun, from 0.")] = 0
    time_ms: Annotated[Milliseconds, Field(description="Event time, milliseconds since the epoch, UTC.")]
    companions: Annotated[
        list[Id],
        Field(
            max_length=8,
            description="Topics on which this run publishes a frame for every sampled step, this one included; the "
            "watermark waits for the slowest of them. Empty: only the topics seen so far count.",
        ),
    ] = []
    final: Annotated[bool, Field(description="The run's last frame on this topic.")] = False


class KernelPerformance(Frame):
    """How each layer's kernels executed since the last frame."""

    layer_id: Annotated[Ids, Field(description="Layers, one entry a row of every column.")]
    seed_id: Annotated[Counts, Field(description="The layer's seed this row is about; 0 where it has none.")] = []
    chunk_id: Annotated[Counts, Field(description="Chunk of the layer's activations; 0 means all of them.")] = []
    execution_latency_ms: Annotated[NonNegatives, Field(description="Forward latency of the layer, ms.")]
    cache_hit_rate: Annotated[Ratios, Field(description="Kernel cache hits / look-ups for this layer.")] = []
    error_count: Annotated[Counts, Field(description="Kernel errors since the last frame.")] = []
    total_executions: Annotated[Counts, Field(description="Forward passes since the last frame.")] = []
    activation_variance: Annotated[NonNegatives, Field(description="Variance of the layer's output.")] = []
    dead_neuron_ratio: Annotated[Ratios, Field(description="Output units never positive in the batch.")] = []
    avg_correlation: Annotated[Column, Field(description="Mean absolute correlation between output units.")] = []

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        # The specification's defaults for telemetry that leaves a column out.
        return fill_columns(
            values,
            {
                "seed_id": 0,
                "chunk_id": 0,
                "cache_hit_rate": 1.0,
                "error_count": 0,
                "total_executions": 1,
                "activation_variance": 0.0,
                "dead_neuron_ratio": 0.0,
                "avg_correlation": 0.5,
            },
        )

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
    """The host's kernel cache, counted since the run began."""

    hits: Annotated[Count, Field(description="Look-ups served from memory.")]
    misses: Annotated[Count, Field(description="Look-ups that went to the kernel store.")]
    evictions: Annotated[Count, Field(description="Kernels dropped to make room.")]
    hit_rate: Annotated[Ratio, Field(description="hits / (hits + misses); 1 where nothing was asked.")]
    entries: Annotated[Count, Field(description="Kernels in memory.")]
    capacity: Annotated[Count, Field(description="Kernels that fit.")]


class ErrorRecoveryEvent(Frame):
    """One error of a kernel and what was done about it."""

    layer_id: Annotated[Id, Field(description="Where it happened.")]
    seed_id: Annotated[Count, Field(description="The layer's seed.")]
    kernel_id: Annotated[Id | None, Field(description="The kernel that failed; null where none was loaded.")] = None
    error_type: Annotated[Text, Field(description="What went wrong, e.g. non_finite or an exception's name.")]
    message: Annotated[Text, Field(description="The error's own words.")] = ""
    strategy: Annotated[Id, Field(description="retry, fall_back, reload, reset or unload.")]
    success: Annotated[bool, Field(description="Whether the kernel works again.")]
    recovery_time_ms: Annotated[NonNegative, Field(description="How long the recovery took, ms.")]


class LayerHealth(Frame):
    """How each layer learns, and the state of its seeds."""

    layer_id: Annotated[Ids, Field(description="Layers, one entry a row of every column.")]
    gradient_norm: Annotated[NonNegatives, Field(description="L2 norm of the layer's own gradient.")]
    update_ratio: Annotated[NonNegatives, Field(description="|parameter change of one step| / |parameters|.")]
    growth_score: Annotated[
        Sparse, Field(description="What a kernel here could gain (design, section 11); null: not measured.")
    ]
    contribution: Annotated[
        Sparse,
        Field(description="Held-out loss with the layer's active kernels gated off minus on, nats; null: none."),
    ]
    kernel_load: Annotated[Ratios, Field(description="Seeds in use / seeds.")]
    alpha: Annotated[Ratios, Field(description="Mean blending factor of the seeds in use; 0 where none.")]
    dormant_seeds: Annotated[Counts, Field(description="Seeds free to load.")]
    active_seeds: Annotated[Counts, Field(description="Seeds loading or active.")]
    fossilized_seeds: Annotated[Counts, Field(description="Seeds made permanent.")]
    error_seeds: Annotated[Counts, Field(description="Seeds in error recovery.")]
    parameters: Annotated[Counts, Field(description="The layer's own parameters, without kernels.")]
    kernel_parameters: Annotated[Counts, Field(description="Parameters of the layer's kernels.")]
    learning_rate_scale: Annotated[NonNegatives, Field(description="Layer learning rate / the optimiser's.")]

    @model_validator(mode="after")
    def _columns(self) -> Self:
        names = [n for n in LayerHealth.model_fields if n not in Frame.model_fields and n != "layer_id"]
        require_columns(self, len(self.layer_id), names)
        return self


class ModelPerformance(Frame):
    """How the whole model does."""

    train_loss: Annotated[Real, Field(description="Loss on the training batch, nats; mean since the last frame.")]
    train_accuracy: Annotated[Ratio | None, Field(description="Accuracy on training batches, where measured.")] = None
    validation_loss: Annotated[
        Real | None, Field(description="Loss on held-out data, nats, where measured since the last frame.")
    ] = None
    validation_accuracy: Annotated[Ratio | None, Field(description="Accuracy on held-out data.")] = None
    throughput: Annotated[NonNegative, Field(description="Samples a second since the last frame.")] = 0.0
    memory_bytes: Annotated[Count, Field(description="Memory of parameters, gradients and optimiser state.")] = 0
    parameters: Annotated[Count, Field(description="Trainable parameters, kernels included.")] = 0
    base_parameters: Annotated[Count, Field(description="Trainable parameters without kernels.")] = 0
    step_time_ms: Annotated[NonNegative, Field(description="Mean time of a training step without the SDK, ms.")] = 0.0
    overhead_ratio: Annotated[NonNegative, Field(description="Time in the SDK / time of training without it.")] = 0.0
    dropped_records: Annotated[Count, Field(description="Records the SDK has dropped since the run began.")] = 0
    steps_since_adaptation: Annotated[
        Count | None, Field(description="Steps since the last executed adaptation; null: none yet.")
    ] = None


class BlueprintOffer(Record):
    """A kernel that could be built at a layer."""

    name: Annotated[Id, Field(description="Blueprint, as registered in the host's catalogue.")]
    parameters: Annotated[Count, Field(description="Parameters it would add.")]
    flops: Annotated[Count, Field(description="Multiply-adds a sample it would add.")]


class LayerNode(Record):
    """One layer of the network that can carry kernels."""

    layer_id: Annotated[Id, Field(description="The module's dotted name.")]
    type: Annotated[Id, Field(description="linear, conv1d, conv2d or other.")]
    parameters: Annotated[Count, Field(description="Own parameters.")]
    input_shape: Annotated[list[Count], Field(max_length=8, description="Of one sample, without the batch.")]
    output_shape: Annotated[list[Count], Field(max_length=8, description="Of one sample, without the batch.")]
    seeds: Annotated[Count, Field(description="Slots for kernels.")]
    protected: Annotated[bool, Field(description="Never to be adapted.")] = False
    # Not "{}" where nothing is told: Apicurio 3 does not take a schema with that default for Avro.
    spec: Annotated[
        Text, Field(description="The layer's geometry as JSON, from which kernels are built; empty: not told.")
    ] = ""
    blueprints: Annotated[list[BlueprintOffer], Field(max_length=100, description="What fits here.")] = []


class LayerEdge(Record):
    """Data flows from one layer to another."""

    source: Annotated[Id, Field(description="layer_id it leaves.")]
    target: Annotated[Id, Field(description="layer_id it reaches.")]
    kind: Annotated[Id, Field(description="data (traced), skip (passes a layer by) or order (fallback).")] = "data"


class ModelTopology(Record):
    """The network as its run began; it does not change during the run."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    topology_id: Annotated[Id, Field(description="Hash of layers and edges.")]
    time_ms: Annotated[Milliseconds, Field(description="When the run was attached, ms since the epoch, UTC.")]
    task: Annotated[Text, Field(description="What is being trained, for people.")] = ""
    layers: Annotated[list[LayerNode], Field(min_length=1, max_length=MAX_LAYERS, description="In topology order.")]
    edges: Annotated[list[LayerEdge], Field(max_length=10 * MAX_LAYERS, description="Data flow.")]
    parameters: Annotated[Count, Field(description="Trainable parameters of the whole model at the start.")]
    parameter_budget: Annotated[Count, Field(description="Parameters that kernels may add in all.")]
    cooldown_steps: Annotated[Count, Field(description="Steps the host wants between two adaptations.")] = 0
    planned_steps: Annotated[Count | None, Field(description="Steps the run will last, where known.")] = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known = {layer.layer_id for layer in self.layers}
        if len(known) != len(self.layers):
            raise ValueError("two layers share one layer_id")
        for edge in self.edges:
            if edge.source not in known or edge.target not in known:
                raise ValueError(f"edge {edge.source} -> {edge.target} names a layer that is not in the topology")
        return self
