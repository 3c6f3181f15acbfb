"""The metrics of telemetry records, by layer and of the model, under their names on the wire."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

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
MODEL = tuple(name for name in ModelPerformance.model_fields if name not in Frame.model_fields)


@dataclass(slots=True)
class FrameMetrics:
    """The metrics of one telemetry record."""

    layer_id: list[str] = field(default_factory=list)
    """The layer of each row."""
    metrics: dict[str, Sequence[float | None]] = field(default_factory=dict)
    """Metric name to one value a row, None where not measured."""
    model_metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the whole model by name."""
    scored: npt.NDArray[np.float64] | None = None
    """[rows, metrics], NaN where not measured: the values whose deviation decides the priority."""
    errors: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """[rows], whether the row reports an error."""
    kept: tuple[str, ...] = ()
    """The metrics that even a dropped row keeps."""


def read(record: Frame) -> FrameMetrics:
    """Return the metrics of a telemetry record.

    Raises:
        RecordError: A value is larger than any that a host can measure.
    """
    content = _READERS[type(record)](record)
    if content.scored is not None:
        largest = np.fmax.reduce(np.abs(content.scored), axis=None, initial=0.0)
        if largest > LARGEST:
            raise RecordError(f"a layer's value of {largest:g} is beyond {LARGEST:g}, the largest that can be measured")
    for name in OPTIONAL_HEALTH:
        for value in content.metrics.get(name, ()):
            if value is not None and abs(value) > LARGEST:
                raise RecordError(f"{name} of {value:g} is beyond {LARGEST:g}, the largest that can be measured")
    for name, value in content.model_metrics.items():
        if abs(value) > LARGEST:
            raise RecordError(f"{name} of {value:g} is beyond {LARGEST:g}, the largest that can be measured")
    return content


def _execution(record: KernelPerformance) -> FrameMetrics:
    health = health_score(
        record.execution_latency_ms, record.error_count, record.total_executions, record.cache_hit_rate
    )
    metrics = {name: getattr(record, name) for name in EXECUTION}
    scored = np.array([*(metrics[name] for name in EXECUTION_SCORED), health], dtype=np.float64)
    return FrameMetrics(
        layer_id=record.layer_id,
        metrics={**metrics, "health": health.tolist()},
        scored=scored.T,
        errors=np.array(record.error_count, dtype=np.int64) > 0,
    )


def _learning(record: LayerHealth) -> FrameMetrics:
    # Only where something was measured: most frames, and all of older hosts, have no metric of these names.
    measured = [name for name in OPTIONAL_HEALTH if any(value is not None for value in getattr(record, name))]
    metrics = {name: getattr(record, name) for name in (*MEASURED, *STATE, *measured)}
    scored = np.array([metrics[name] for name in LEARNING_SCORED], dtype=np.float64)
    return FrameMetrics(
        layer_id=record.layer_id,
        metrics=metrics,
        scored=scored.T,
        errors=np.array(record.error_seeds, dtype=np.int64) > 0,
        kept=(*STATE, *measured),
    )


def _recovery(record: ErrorRecoveryEvent) -> FrameMetrics:
    return FrameMetrics(
        layer_id=[record.layer_id],
        metrics={
            "recovery_errors": [1.0],
            "recovery_success": [float(record.success)],
            "recovery_time_ms": [min(record.recovery_time_ms, LARGEST)],
        },
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
