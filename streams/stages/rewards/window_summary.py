"""The few numbers of a window that rewards need, so that many windows can be held."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from tamiyo.schemas.analysis import HealthWindow
from tamiyo.schemas.columns import Floats


@dataclass(frozen=True, slots=True)
class WindowSummary:
    """One window of a run. Losses in nats, latencies in ms; None means not measured, which is not zero."""

    offset: int
    """In the windows topic."""
    start: float
    end: float
    time_ms: int
    final: bool = False
    train_loss: float | None = None
    validation_loss: float | None = None
    step_time_ms: float | None = None
    """The fastest training step: a minimum excludes most noise."""
    layers_ms: float | None = None
    """Sum over layers of their fastest forward pass."""
    latency_variance: float | None = None
    """Median over the layers, ms squared."""
    contribution: Mapping[str, float] | None = None
    """Layer to held-out loss with its kernels gated off, minus with them on."""
    kernel_latency_ms: Mapping[str, float] | None = None
    """Layer to the forward time that its active kernels add, measured in pairs with and without them."""
    base_latency_ms: Mapping[str, float] | None = None
    """Layer to its forward time without its active kernels, in the same pairs."""
    twins: Mapping[str, tuple[float, int, float]] | None = None
    """Layer to the gain (nats) of an adaptation that a shadow twin measured, the twin's steps, and the probability with
    which it was chosen."""
    errors: Mapping[str, float] | None = None
    """Layer to error rate in 0..1, of layers with errors."""
    recoveries: Mapping[str, tuple[int, float]] | None = None
    """Layer to the number of recoveries, and how many of them succeeded."""

    @property
    def middle(self) -> float:
        """The clock value that the window's means stand for."""
        return (self.start + self.end) / 2

    @classmethod
    def of(cls, window: HealthWindow, offset: int) -> "WindowSummary":
        """Summarize a window read at `offset` of the windows topic."""
        model = window.model_metrics
        step_time = model.get("step_time_ms")
        latencies = window.metrics.get("execution_latency_ms")
        fastest = _known(latencies.minimum) if latencies else []
        variances = _known(latencies.variance) if latencies else []
        return cls(
            offset=offset,
            start=float(window.start),
            end=float(window.end),
            time_ms=window.time_ms,
            final=window.final,
            train_loss=model["train_loss"].mean if "train_loss" in model else None,
            validation_loss=model["validation_loss"].mean if "validation_loss" in model else None,
            step_time_ms=step_time.minimum if step_time and step_time.minimum > 0 else None,
            layers_ms=sum(fastest) if fastest else None,
            latency_variance=median(variances) if variances else None,
            contribution=_means(window, "contribution") or None,
            kernel_latency_ms=_means(window, "kernel_latency_ms") or None,
            base_latency_ms=_means(window, "base_latency_ms") or None,
            twins=_twins(window) or None,
            errors=_error_rates(window) or None,
            recoveries=_recoveries(window) or None,
        )


def _known(values: Floats) -> list[float]:
    known: list[float] = values[~np.isnan(values)].tolist()
    return known


def _by_layer(layers: Sequence[str], values: Floats) -> dict[str, float]:
    """Return the values that were measured, by layer."""
    places = np.flatnonzero(~np.isnan(values)).tolist()
    return {layers[place]: float(values[place]) for place in places}


def _means(window: HealthWindow, metric: str) -> dict[str, float]:
    stats = window.metrics.get(metric)
    return {} if stats is None else _by_layer(window.layer_id, stats.mean)


def _twins(window: HealthWindow) -> dict[str, tuple[float, int, float]]:
    """Return the last result in the window, by layer; its columns are published together."""
    columns = [window.metrics.get(name) for name in ("twin_gain", "twin_steps", "twin_probability")]
    gains, steps, probabilities = (
        {} if column is None else _by_layer(window.layer_id, column.last) for column in columns
    )
    return {
        layer: (gain, round(steps[layer]), probabilities[layer])
        for layer, gain in gains.items()
        if layer in steps and layer in probabilities
    }


def _sums(window: HealthWindow, metric: str) -> dict[str, float]:
    stats = window.metrics.get(metric)
    return {} if stats is None else _by_layer(window.layer_id, stats.mean * stats.count)


def _error_rates(window: HealthWindow) -> dict[str, float]:
    errors = {layer: count for layer, count in _sums(window, "error_count").items() if count > 0}
    if not errors:
        return {}
    executions = _sums(window, "total_executions")
    return {layer: min(1.0, count / max(executions.get(layer, 0.0), 1.0)) for layer, count in errors.items()}


def _recoveries(window: HealthWindow) -> dict[str, tuple[int, float]]:
    stats = window.metrics.get("recovery_success")
    if stats is None:
        return {}
    succeeded, counts = _sums(window, "recovery_success"), _by_layer(window.layer_id, stats.count)
    return {layer: (int(counts[layer]), total) for layer, total in succeeded.items()}
