"""Records that the stages derive from telemetry: signals, windows and graphs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from tamiyo.schemas.columns import ColumnarRecord, Columns, Floats, entries, signals_from_lists, window_from_lists
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
    Step,
    Tensor,
    require_columns,
)
from tamiyo.schemas.telemetry import BlueprintOffer

SAMPLING = ["priority", "survival"]
"""The names of a signal's `sampling`, in order."""


class HealthSignals(ColumnarRecord):
    """One telemetry frame after validation, scoring and shedding."""

    released_fields: ClassVar[frozenset[str]] = frozenset({"metrics", "priority", "survival"})

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    signal_id: Annotated[Id, Field(description="Hash of run, source, step and source offset.")]
    source: Annotated[Id, Field(description="Topic of the frame, without the installation's prefix.")]
    step: Annotated[Step, Field(description="The frame's step.")]
    epoch: Annotated[Count, Field(description="The frame's epoch.")] = 0
    time_ms: Annotated[Milliseconds, Field(description="The frame's event time, ms since the epoch, UTC.")]
    companions: Annotated[list[Id], Field(max_length=8, description="As in the frame.")] = []
    final: Annotated[bool, Field(description="The run's last frame of this source.")] = False
    layer_id: Annotated[Ids, Field(description="Kept layers; every column has one entry per layer, in this order.")]
    columns: Annotated[Columns, Field(description="The metrics: one value per layer.")] = Columns()
    sampling: Annotated[
        Columns,
        Field(
            description="priority: anomaly of each layer's signal, >= 0, 0 is ordinary; survival: probability with "
            "which it was kept."
        ),
    ] = Columns(names=SAMPLING)
    shed: Annotated[LayerCount, Field(description="Layer-signals of this frame dropped under overload.")] = 0
    filtered: Annotated[LayerCount, Field(description="Layer-signals of this frame dropped by the filter.")] = 0
    model_metrics: Annotated[dict[str, Real], Field(description="Metrics of the whole model, by name.")] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_lists(cls, values: Any) -> Any:
        if isinstance(values, dict) and not cls.released_fields.isdisjoint(values):
            return signals_from_lists(values)
        return values

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if self.sampling.names != SAMPLING:
            raise ValueError(f"expected {SAMPLING} in sampling, got {self.sampling.names}")
        if not (self.layer_id or self.columns.values or self.sampling.values):
            return self
        if np.isinf(self.matrix).any():
            raise ValueError("a metric is infinite")
        # A NaN makes minimum and maximum NaN, which compares as False.
        low, high = self.chances.min(axis=1, initial=0.0).tolist(), self.chances.max(axis=1, initial=0.0).tolist()
        if not (low[0] >= 0 and low[1] >= 0 and high[0] < math.inf and high[1] <= 1):
            raise ValueError("expected a finite priority >= 0 and a survival in 0..1 for every layer")
        return self

    @cached_property
    def matrix(self) -> Floats:
        """The metrics, [metrics, layers]; NaN: not measured."""
        return self.columns.matrix(len(self.layer_id))

    @cached_property
    def metrics(self) -> Mapping[str, Floats]:
        """By metric name, one value per layer; NaN: not measured."""
        return dict(zip(self.columns.names, self.matrix, strict=True))

    def lists(self) -> dict[str, Any]:
        """Return lists instead of columns: `metrics`, `priority` and `survival`."""
        metrics = {name: entries(column) for name, column in self.metrics.items()}
        return {"metrics": metrics, "priority": self.priority.tolist(), "survival": self.survival.tolist()}

    @cached_property
    def chances(self) -> Floats:
        """Priority and survival, [2, layers]."""
        return self.sampling.matrix(len(self.layer_id))

    @property
    def priority(self) -> Floats:
        """Anomaly of each layer's signal, >= 0; 0 is ordinary."""
        row: Floats = self.chances[0]
        return row

    @property
    def survival(self) -> Floats:
        """Probability with which each layer's signal was kept."""
        row: Floats = self.chances[1]
        return row


STATISTICS = ("count", "mean", "variance", "minimum", "maximum", "last", "slope")
"""What a window has of every metric, in the order of its columns."""


@dataclass(frozen=True, slots=True)
class LayerStats:
    """One metric over one window: arrays with one entry per layer, NaN where the layer has no value."""

    count: Floats
    """Number of values; 0 where the layer has none."""
    mean: Floats
    variance: Floats
    """Population variance."""
    minimum: Floats
    maximum: Floats
    last: Floats
    """Last value by event time."""
    slope: Floats
    """Least-squares change per unit of the clock; NaN below two distinct times."""

    def lists(self) -> dict[str, list[float | None]]:
        """Return each statistic as a list, None where the layer has no value."""
        return {name: entries(getattr(self, name)) for name in STATISTICS}


class ModelStats(Record):
    """One metric of the whole model over one window."""

    count: Annotated[Count, Field(description="Number of values.")]
    mean: Annotated[Real, Field(description="Arithmetic mean.")]
    variance: Annotated[NonNegative, Field(description="Population variance.")]
    minimum: Annotated[Real, Field(description="Smallest value.")]
    maximum: Annotated[Real, Field(description="Largest value.")]
    last: Annotated[Real, Field(description="Last value by event time.")]
    slope: Annotated[
        Real | None, Field(description="Least-squares change per unit of the clock; null below two distinct times.")
    ]


class HealthWindow(ColumnarRecord):
    """A tumbling window of one run. Windows are published once, when they are final."""

    released_fields: ClassVar[frozenset[str]] = frozenset({"metrics"})

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    window_id: Annotated[Id, Field(description="Hash of run, clock, width and start.")]
    clock: Annotated[Id, Field(description="step or time: start, end and slopes count in steps or ms.")]
    start: Annotated[Count, Field(description="First clock value of the window.")]
    end: Annotated[Count, Field(description="First clock value after the window.")]
    first_step: Annotated[Step, Field(description="Lowest step in the window.")]
    last_step: Annotated[Step, Field(description="Highest step in the window.")]
    time_ms: Annotated[Milliseconds, Field(description="Highest event time in the window, ms since the epoch, UTC.")]
    final: Annotated[bool, Field(description="The run's last window.")] = False
    layer_id: Annotated[Ids, Field(description="Layers with signals, in order of first appearance by event time.")]
    columns: Annotated[
        Columns,
        Field(
            description="Statistics of the layers' metrics: for each metric count, mean, variance, minimum, maximum, "
            "last and slope, each with one value per layer."
        ),
    ] = Columns()
    model_metrics: Annotated[
        dict[str, ModelStats], Field(description="Statistics of the whole model's metrics, by name.")
    ]
    signals: Annotated[Count, Field(description="Layer-signals in the window.")]
    frames: Annotated[Count, Field(description="Frames in the window.")]
    shed: Annotated[Count, Field(description="Layer-signals missing because intake shed them.")] = 0
    signals_digest: Annotated[Id, Field(description="Hash of the window's signal ids, sorted.")]

    @model_validator(mode="before")
    @classmethod
    def _from_lists(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("metrics"), dict):
            return window_from_lists(values)
        return values

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if np.isinf(self.cube).any():
            raise ValueError("a statistic is infinite")
        counts = self.cube[:, 0]
        if not ((counts >= 0) & (counts == np.rint(counts))).all():
            raise ValueError("expected whole counts >= 0")
        return self

    def lists(self) -> dict[str, Any]:
        """Return lists instead of columns: `metrics`, by name and statistic."""
        return {"metrics": {name: stats.lists() for name, stats in self.metrics.items()}}

    @cached_property
    def cube(self) -> Floats:
        """The statistics of the layers' metrics, [metrics, statistics, layers], in the order of `STATISTICS`."""
        return self.columns.matrix(len(STATISTICS), len(self.layer_id))

    @cached_property
    def metrics(self) -> Mapping[str, LayerStats]:
        """Statistics of the layers' metrics, by name."""
        return {name: LayerStats(*block) for name, block in zip(self.columns.names, self.cube, strict=True)}


def statistics_columns(metrics: Mapping[str, LayerStats]) -> Columns:
    """Return the columns of a window.

    Args:
        metrics: Statistics by metric name, all of the same layers.
    """
    return Columns.of(metrics, [[getattr(stats, name) for name in STATISTICS] for stats in metrics.values()])


class ModelGraph(Record):
    """The network as a graph of layers at the end of a window: the input of the policy."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    graph_id: Annotated[Id, Field(description="Hash of window and topology.")]
    window_id: Annotated[Id, Field(description="The window it was built from.")]
    topology_id: Annotated[Id, Field(description="The topology it was joined with.")]
    step: Annotated[Step, Field(description="Last step of the window.")]
    time_ms: Annotated[Milliseconds, Field(description="The window's highest event time, ms since the epoch, UTC.")]
    final: Annotated[bool, Field(description="The run's last graph.")] = False
    feature_version: Annotated[Count, Field(description="Version of the feature catalogue.")]
    layer_id: Annotated[Ids, Field(description="Nodes, in topology order; columns have one entry per node.")]
    layer_type: Annotated[Ids, Field(description="Type of each node.")]
    node_features: Annotated[Tensor, Field(description="[layers, node features].")]
    edge_source: Annotated[
        list[Count], Field(max_length=10 * MAX_LAYERS, description="Node index of each edge's source.")
    ]
    edge_target: Annotated[
        list[Count], Field(max_length=10 * MAX_LAYERS, description="Node index of each edge's target.")
    ]
    edge_features: Annotated[Tensor, Field(description="[edges, edge features].")]
    global_features: Annotated[Tensor, Field(description="[global features].")]
    health: Annotated[Ratios, Field(description="Mean health score of each node; 1 where not measured.")]
    health_trend: Annotated[Column, Field(description="Change of each node's health per window; 0 where unknown.")]
    problematic: Annotated[list[Id], Field(max_length=MAX_LAYERS, description="Ids of the layers that need attention.")]
    signals: Annotated[Count, Field(description="Layer-signals in the window.")]
    dormant_seeds: Annotated[Counts, Field(description="Each node's seeds that are free to load.")]
    active_seeds: Annotated[Counts, Field(description="Each node's seeds that can be unloaded or fossilized.")]
    fossilized_seeds: Annotated[Counts, Field(description="Each node's permanent seeds.")]
    protected: Annotated[list[bool], Field(max_length=MAX_LAYERS, description="Whether each node must not be adapted.")]
    learning_rate_scale: Annotated[NonNegatives, Field(description="Each node's learning rate / the optimiser's.")]
    offers: Annotated[
        list[list[BlueprintOffer]], Field(max_length=MAX_LAYERS, description="Blueprints that fit each node.")
    ]
    parameters: Annotated[Count, Field(description="Trainable parameters now, kernels included.")]
    base_parameters: Annotated[Count, Field(description="Trainable parameters without kernels.")]
    parameter_budget: Annotated[Count, Field(description="Parameters that kernels may add in total.")]
    steps_since_adaptation: Annotated[
        Count | None, Field(description="Steps since the last executed adaptation; null before the first.")
    ] = None
    cooldown_steps: Annotated[Count, Field(description="Fewest steps between two adaptations of the run.")] = 0
    model_metrics: Annotated[dict[str, Real], Field(description="Window means of the whole model's metrics.")] = {}

    @model_validator(mode="after")
    def _columns(self) -> Self:
        nodes = len(self.layer_id)
        names = ["layer_type", "health", "health_trend", "dormant_seeds", "active_seeds", "fossilized_seeds"]
        require_columns(self, nodes, [*names, "protected", "learning_rate_scale", "offers"])
        if self.node_features.shape[:1] != [nodes] or len(self.node_features.shape) != 2:
            raise ValueError(f"expected node_features of [{nodes}, features], got {self.node_features.shape}")
        edges = len(self.edge_source)
        if len(self.edge_target) != edges or self.edge_features.shape[:1] != [edges]:
            raise ValueError("edge_source, edge_target and edge_features differ in length")
        if any(index >= nodes for index in (*self.edge_source, *self.edge_target)):
            raise ValueError(f"an edge names a node outside 0..{nodes - 1}")
        return self
