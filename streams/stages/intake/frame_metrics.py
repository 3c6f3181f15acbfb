"""The metrics of telemetry records, by layer and of the model, under their names on the wire."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tamiyo.schemas.columns import Floats
from tamiyo.schemas.direct.frames import LayerFrame
from tamiyo.schemas.errors import RecordError
from tamiyo.schemas.telemetry import (
    OPTIONAL_HEALTH,
    CacheHitRates,
    ErrorRecoveryEvent,
    Frame,
    KernelPerformance,
    LayerHealth,
    ModelPerformance,
)
from tamiyo.streams.stages.intake.health_score import health_score

LARGEST = 1e39  # above float32, so no host can measure more; its square still fits a float64

EXECUTION = (
    "execution_latency_ms",
    "cache_hit_rate",
    "error_count",
    "total_executions",
    "activation_variance",
    "dead_neuron_ratio",
    "avg_correlation",
)
MEASURED = ("gradient_norm", "update_ratio", "growth_score")
STATE = (
    "contribution",
    "kernel_load",
    "alpha",
    "dormant_seeds",
    "active_seeds",
    "fossilized_seeds",
    "error_seeds",
    "parameters",
    "kernel_parameters",
    "learning_rate_scale",
)
"""What a graph needs of every layer: a dropped layer-signal keeps these and loses only `MEASURED`."""

# The columns in which something unusual shows, and every column whose values have no bound in the schema.
EXECUTION_SCORED = (
    "execution_latency_ms",
    "cache_hit_rate",
    "activation_variance",
    "dead_neuron_ratio",
    "avg_correlation",
)
LEARNING_SCORED = (*MEASURED, "contribution", "learning_rate_scale")
_EXECUTION_SCORED = [[*EXECUTION, "health"].index(name) for name in (*EXECUTION_SCORED, "health")]
_EXECUTION_COLUMNS = [name for name in KernelPerformance.model_fields if name not in {*Frame.model_fields, "layer_id"}]
_EXECUTION_ROWS = [_EXECUTION_COLUMNS.index(name) for name in EXECUTION]
"""Where a matrix of an execution frame has the metrics of `EXECUTION`."""
_LEARNING_SCORED = [[*MEASURED, *STATE].index(name) for name in LEARNING_SCORED]
_ERROR_SEEDS = [*MEASURED, *STATE].index("error_seeds")
MODEL = tuple(name for name in ModelPerformance.model_fields if name not in Frame.model_fields)


@dataclass(slots=True)
class FrameMetrics:
    """The metrics of one telemetry record."""

    layer_id: list[str] = field(default_factory=list)
    """The layer of each row."""
    names: tuple[str, ...] = ()
    """The layers' metrics."""
    values: Floats = field(default_factory=lambda: np.empty((0, 0)))
    """[names, rows], NaN where not measured."""
    model_metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the whole model by name."""
    scored: Floats | None = None
    """[rows, metrics], NaN where not measured: the values whose deviation decides the priority."""
    errors: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """[rows], whether the row reports an error."""
    measured: slice | None = None
    """The names whose values a dropped row loses, if the others are state that it keeps; None: the row is left out."""


def read(record: Frame | LayerFrame) -> FrameMetrics:
    """Return the metrics of a telemetry record.

    Raises:
        RecordError: A value is larger than any that a host can measure.
    """
    content = _FRAME_READERS[record.kind](record) if isinstance(record, LayerFrame) else _READERS[type(record)](record)
    if np.fmax.reduce(np.abs(content.values), axis=None, initial=0.0) > LARGEST:
        largest = np.fmax.reduce(np.abs(content.values), axis=1)
        worst = int(np.nanargmax(largest))
        raise RecordError(
            f"{content.names[worst]} of {largest[worst]:g} is beyond {LARGEST:g}, the largest that can be measured"
        )
    for name, value in content.model_metrics.items():
        if abs(value) > LARGEST:
            raise RecordError(f"{name} of {value:g} is beyond {LARGEST:g}, the largest that can be measured")
    return content


def _execution(record: KernelPerformance) -> FrameMetrics:
    values = np.empty((len(EXECUTION) + 1, len(record.layer_id)))
    for row, name in enumerate(EXECUTION):
        values[row] = getattr(record, name)
    return _executed(record.layer_id, values)


def _execution_frame(frame: LayerFrame) -> FrameMetrics:
    values = np.empty((len(EXECUTION) + 1, len(frame.layer_id)))
    values[:-1] = frame.values[_EXECUTION_ROWS]
    return _executed(frame.layer_id, values)


def _executed(layers: list[str], values: Floats) -> FrameMetrics:
    """Return the metrics of `EXECUTION` and the health score, whose row is still empty."""
    latency, hit_rate, errors, executions = values[:4]
    values[-1] = health_score(latency, errors, executions, hit_rate)
    return FrameMetrics(
        layer_id=layers,
        names=(*EXECUTION, "health"),
        values=values,
        scored=values[_EXECUTION_SCORED].T,
        errors=errors > 0,
    )


def _learning(record: LayerHealth) -> FrameMetrics:
    # Only where something was measured: most frames, and all of older hosts, have no metric of these names.
    optional = [
        name for name in OPTIONAL_HEALTH if (column := getattr(record, name)) and column.count(None) < len(column)
    ]
    names = (*MEASURED, *STATE, *optional)
    values = np.empty((len(names), len(record.layer_id)))
    for row, name in enumerate(names):
        values[row] = getattr(record, name)
    return _learned(record.layer_id, names, values)


def _learning_frame(frame: LayerFrame) -> FrameMetrics:
    return _learned(frame.layer_id, frame.names, frame.values)


def _learned(layers: list[str], names: tuple[str, ...], values: Floats) -> FrameMetrics:
    return FrameMetrics(
        layer_id=layers,
        names=names,
        values=values,
        scored=values[_LEARNING_SCORED].T,
        errors=values[_ERROR_SEEDS] > 0,
        measured=slice(len(MEASURED)),
    )


def _recovery(record: ErrorRecoveryEvent) -> FrameMetrics:
    return FrameMetrics(
        layer_id=[record.layer_id],
        names=("recovery_errors", "recovery_success", "recovery_time_ms"),
        values=np.array([[1.0], [float(record.success)], [min(record.recovery_time_ms, LARGEST)]]),
        errors=np.ones(1, dtype=bool),
    )


def _model(record: ModelPerformance) -> FrameMetrics:
    values = {name: getattr(record, name) for name in MODEL}
    return FrameMetrics(model_metrics={name: float(value) for name, value in values.items() if value is not None})


def _cache(record: CacheHitRates) -> FrameMetrics:
    return FrameMetrics(
        model_metrics={
            "cache_hit_rate": record.hit_rate,
            "cache_entries": float(record.entries),
            "cache_evictions": float(record.evictions),
        }
    )


_READERS: dict[type[Frame], Callable[[Any], FrameMetrics]] = {
    KernelPerformance: _execution,
    LayerHealth: _learning,
    ErrorRecoveryEvent: _recovery,
    ModelPerformance: _model,
    CacheHitRates: _cache,
}
_FRAME_READERS: dict[type[Frame], Callable[[LayerFrame], FrameMetrics]] = {
    KernelPerformance: _execution_frame,
    LayerHealth: _learning_frame,
}
