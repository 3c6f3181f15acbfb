"""What the stages make of telemetry: signals, windows, graphs."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from tamiyo.schemas.record import (
    MAX_LAYERS,
    Column,
    Count,
    Counts,
    Id,
    Ids,
    LayerCount,
    Milliseconds,
    NonNegative,
    NonNegatives,
    Ratios,
    Real,
    Record,
    Sparse,
    Step,
    Tensor,
    require_columns,
)
from tamiyo.schemas.telemetry import BlueprintOffer


class HealthSignals(Record):
    """One telemetry frame after validation, scoring and shedding."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    signal_id: Annotated[Id, Field(description="Hash of run, source, step and source offset.")]
    source: Annotated[Id, Field(description="Topic the frame came from, without prefix.")]
    step: Annotated[Step, Field(description="The frame's step.")]
    epoch: Annotated[Count, Field(description="The frame's epoch.")] = 0
    time_ms: Annotated[Milliseconds, Field(description="The frame's event time, ms since the epoch, UTC.")]
    companions: Annotated[list[Id], Field(max_length=8, description="As in the frame.")] = []
    final: Annotated[bool, Field(description="The run's last frame of this source.")] = False
    layer_id: Annotated[Ids, Field(description="Layers kept, one entry a row of every column.")]
    metrics: Annotated[
        dict[str, Sparse], Field(description="Metric name to one value a layer; null: not measured.")
    ] = {}
    priority: Annotated[NonNegatives, Field(description="Anomaly of each layer's signal; 0 is ordinary.")] = []
    survival: Annotated[Ratios, Field(description="Probability with which each signal was kept.")] = []
    shed: Annotated[LayerCount, Field(description="Layer-signals of this frame dropped under overload.")] = 0
    filtered: Annotated[LayerCount, Field(description="Layer-signals of this frame dropped by the filter.")] = 0
    model_metrics: Annotated[dict[str, Real], Field(description="Metrics of the whole model by name.")] = {}

    @model_validator(mode="after")
    def _columns(self) -> Self:
        require_columns(self, len(self.layer_id), ["priority", "survival"])
        for name, column in self.metrics.items():
            if len(column) != len(self.layer_id):
                raise ValueError(f"metric {name} has {len(column)} entries for {len(self.layer_id)} layers")
        return self


class LayerStats(Record):
    """One metric over one window, a column entry a layer; null where the layer had no value."""

    count: Annotated[Counts, Field(description="Values seen.")]
    mean: Sparse
    variance: Annotated[Sparse, Field(description="Population variance.")]
    minimum: Sparse
    maximum: Sparse
    last: Annotated[Sparse, Field(description="By event time.")]
    slope: Annotated[Sparse, Field(description="Least squares, a clock unit; null below two distinct times.")]


class ModelStats(Record):
    """One metric of the whole model over one window."""

    count: Count
    mean: Real
    variance: Annotated[NonNegative, Field(description="Population variance.")]
    minimum: Real
    maximum: Real
    last: Annotated[Real, Field(description="By event time.")]
    slope: Annotated[Real | None, Field(description="Least squares, a clock unit; null below two distinct times.")]


class HealthWindow(Record):
    """A tumbling window of one run, final."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    window_id: Annotated[Id, Field(description="Hash of run, clock, width and start.")]
    clock: Annotated[Id, Field(description="step or time: the unit of start, end and slopes (step, or ms).")]
    start: Annotated[Count, Field(description="First clock value inside.")]
    end: Annotated[Count, Field(description="First clock value outside.")]
    first_step: Annotated[Step, Field(description="Lowest step seen inside.")]
    last_step: Annotated[Step, Field(description="Highest step seen inside.")]
    time_ms: Annotated[Milliseconds, Field(description="Highest event time seen inside.")]
    final: Annotated[bool, Field(description="The run's last window.")] = False
    layer_id: Annotated[Ids, Field(description="Layers seen, in order of first appearance by event time.")]
    metrics: Annotated[dict[str, LayerStats], Field(description="By metric name.")]
    model_metrics: Annotated[dict[str, ModelStats], Field(description="By metric name.")]
    signals: Annotated[Count, Field(description="Layer-signals inside.")]
    frames: Annotated[Count, Field(description="Frames inside.")]
    shed: Annotated[Count, Field(description="Layer-signals missing because intake shed them.")] = 0
    signals_digest: Annotated[Id, Field(description="Hash of the signal ids inside, sorted.")]

    @model_validator(mode="after")
    def _columns(self) -> Self:
        for name, stats in self.metrics.items():
            for column in LayerStats.model_fields:
                if len(getattr(stats, column)) != len(self.layer_id):
                    raise ValueError(f"{column} of metric {name} is not of {len(self.layer_id)} layers")
        return self


class ModelGraph(Record):
    """The network as a graph of layers at the end of a window: what the policy sees."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    graph_id: Annotated[Id, Field(description="Hash of window and topology.")]
    window_id: Annotated[Id, Field(description="The window it was built from.")]
    topology_id: Annotated[Id, Field(description="The topology it was joined with.")]
    step: Annotated[Step, Field(description="Last step of the window.")]
    time_ms: Annotated[Milliseconds, Field(description="The window's highest event time.")]
    final: Annotated[bool, Field(description="The run's last graph.")] = False
    feature_version: Annotated[Count, Field(description="Version of the feature catalogue.")]
    layer_id: Annotated[Ids, Field(description="Nodes in topology order.")]
    layer_type: Annotated[Ids, Field(description="Type of each node.")]
    node_features: Annotated[Tensor, Field(description="[layers, node features of the catalogue].")]
    edge_source: Annotated[list[Count], Field(max_length=10 * MAX_LAYERS, description="Node index.")]
    edge_target: Annotated[list[Count], Field(max_length=10 * MAX_LAYERS, description="Node index.")]
    edge_features: Annotated[Tensor, Field(description="[edges, 8].")]
    global_features: Annotated[Tensor, Field(description="[global features of the catalogue].")]
    health: Annotated[Ratios, Field(description="Mean health score of each node; 1 where not measured.")]
    health_trend: Annotated[Column, Field(description="Change of health a window; 0 where unknown.")]
    problematic: Annotated[list[Id], Field(max_length=MAX_LAYERS, description="layer_ids that need attention.")]
    signals: Annotated[Count, Field(description="Layer-signals in the window.")]
    dormant_seeds: Annotated[Counts, Field(description="Seeds free to load, a node.")]
    active_seeds: Annotated[Counts, Field(description="Seeds that can be unloaded or fossilized, a node.")]
    fossilized_seeds: Annotated[Counts, Field(description="Permanent seeds, a node.")]
    protected: Annotated[list[bool], Field(max_length=MAX_LAYERS, description="Never to be adapted, a node.")]
    learning_rate_scale: Annotated[NonNegatives, Field(description="A node's learning rate / the optimiser's.")]
    offers: Annotated[
        list[list[BlueprintOffer]], Field(max_length=MAX_LAYERS, description="Blueprints that fit, a node.")
    ]
    parameters: Annotated[Count, Field(description="Trainable parameters now, kernels included.")]
    base_parameters: Annotated[Count, Field(description="Trainable parameters without kernels.")]
    parameter_budget: Annotated[Count, Field(description="Parameters that kernels may add in all.")]
    steps_since_adaptation: Annotated[Count | None, Field(description="As the host last told; null: none yet.")] = None
    cooldown_steps: Annotated[Count, Field(description="Steps the host wants between two adaptations.")] = 0
    model_metrics: Annotated[dict[str, Real], Field(description="Window means of the model's metrics.")] = {}

    @model_validator(mode="after")
    def _columns(self) -> Self:
        nodes = len(self.layer_id)
        names = ["layer_type", "health", "health_trend", "dormant_seeds", "active_seeds", "fossilized_seeds"]
        require_columns(self, nodes, [*names, "protected", "learning_rate_scale", "offers"])
        if self.node_features.shape[:1] != [nodes] or len(self.node_features.shape) != 2:
            raise ValueError(f"node_features of {self.node_features.shape} for {nodes} layers")
        edges = len(self.edge_source)
        if len(self.edge_target) != edges or self.edge_features.shape[:1] != [edges]:
            raise ValueError("edge_source, edge_target and edge_features differ in length")
        if any(index >= nodes for index in (*self.edge_source, *self.edge_target)):
            raise ValueError("an edge names a node that is not there")
        return self
