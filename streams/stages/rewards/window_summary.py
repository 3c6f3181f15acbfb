"""The few numbers of a window that rewards need, so that many windows can be held."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tamiyo.schemas.analysis import HealthWindow, LayerStats


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
            contribution=_by_layer(window.layer_id, window.metrics.get("contribution")) or None,
            kernel_latency_ms=_by_layer(window.layer_id, window.metrics.get("kernel_latency_ms")) or None,
            base_latency_ms=_by_layer(window.layer_id, window.metrics.get("base_latency_ms")) or None,
            twins=_twins(window) or None,
            errors=_error_rates(window) or None,
            recoveries=_recoveries(window) or None,
        )


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _by_layer(layers: Sequence[str], stats: LayerStats | None) -> dict[str, float]:
    if stats is None:
        return {}
    return {layer: mean for layer, mean in zip(layers, stats.mean, strict=True) if mean is not None}


def _twins(window: HealthWindow) -> dict[str, tuple[float, int, float]]:
    """Return the last result in the window, by layer; its columns are published together."""
    columns = [window.metrics.get(name) for name in ("twin_gain", "twin_steps", "twin_probability")]
    gains, steps, probabilities = ([] if column is None else column.last for column in columns)
    return {
        layer: (gain, round(count), probability)
        for layer, gain, count, probability in zip(window.layer_id, gains, steps, probabilities, strict=False)
        if gain is not None and count is not None and probability is not None
    }


def _sums(window: HealthWindow, metric: str) -> dict[str, float]:
    stats = window.metrics.get(metric)
    if stats is None:
        return {}
    rows = zip(window.layer_id, stats.mean, stats.count, strict=True)
    return {layer: mean * count for layer, mean, count in rows if mean is not None}


def _error_rates(window: HealthWindow) -> dict[str, float]:
    executions = _sums(window, "total_executions")
    return {
        layer: min(1.0, errors / max(executions.get(layer, 0.0), 1.0))
        for layer, errors in _sums(window, "error_count").items()
        if errors > 0
    }


def _recoveries(window: HealthWindow) -> dict[str, tuple[int, float]]:
    stats = window.metrics.get("recovery_success")
    if stats is None:
        return {}
    rows = zip(window.layer_id, stats.mean, stats.count, strict=True)
    return {layer: (count, mean * count) for layer, mean, count in rows if mean is not None and count}
