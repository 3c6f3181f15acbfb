"""The components of a span's reward, computed from its windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tamiyo.streams.stages.rewards import components as rc
from tamiyo.streams.stages.rewards.adaptation import ExecutedAdaptation
from tamiyo.streams.stages.rewards.projection import MAD_TO_SIGMA
from tamiyo.streams.stages.rewards.window_summary import WindowSummary

MIN_LATENCY_NOISE = 0.05  # relative; below it a step time on a shared machine carries no information
LATENCY_NOISE_SIGMAS = 3.0


def span_components(
    adaptation: ExecutedAdaptation,
    gain: float,
    before: Sequence[WindowSummary],
    so_far: Sequence[WindowSummary],
    inside: Sequence[WindowSummary],
) -> dict[str, float]:
    """Return the six components of one span, before weights.

    Args:
        adaptation: What was executed.
        gain: Log(loss without / loss with) over the span.
        before: Windows that ended before the adaptation, oldest first.
        so_far: Windows from the adaptation to the span's end; latency is measured over all of them.
        inside: Windows in the span.
    """
    # The latency of a later adaptation is not this one's: only windows before it count.
    alone = [w for w in so_far if w.end <= adaptation.next_adaptation_at]
    latency = _paired_change(adaptation, before, alone) or _latency_change(before, alone)
    errors_before, errors_after = _error_rate(adaptation, before), _error_rate(adaptation, inside)
    recoveries, recovery_rate = _recoveries(adaptation, inside)
    parameters, budget = adaptation.parameters_added, adaptation.parameter_budget
    return {
        rc.ACCURACY: rc.accuracy_improvement(gain),
        rc.SPEED: rc.relative_speed(
            latency.before_ms, latency.after_ms, noise=latency.noise, allowance_ms=latency.allowance_ms
        ),
        rc.MEMORY: rc.memory_efficiency(parameters, budget),
        rc.STABILITY: rc.relative_stability(errors_before, errors_after, recovery_rate, *_variances(before, alone)),
        rc.COST: rc.adaptation_cost(parameters, budget, latency.slowdown),
        rc.RISK: rc.risk_penalty(errors_before, errors_after, recoveries, adaptation.uncertainty),
    }


@dataclass(frozen=True, slots=True)
class _LatencyChange:
    before_ms: float = 0.0
    after_ms: float = 0.0
    noise: float = MIN_LATENCY_NOISE
    """Relative change below which there is none."""
    allowance_ms: float = 0.0

    @property
    def slowdown(self) -> float:
        """Relative slowdown, 0 within the noise."""
        change = (self.after_ms - self.before_ms) / self.before_ms if self.before_ms > 0 else 0.0
        return change if change > self.noise else 0.0


def _paired_change(
    adaptation: ExecutedAdaptation, before: Sequence[WindowSummary], after: Sequence[WindowSummary]
) -> _LatencyChange | None:
    """Compare the network's forward pass with and without the adaptation, as the host measures it in pairs.

    The forward passes of all layers are summed, with what their kernels add. Only the adapted layer changes: for a
    loaded kernel by what the layer's kernels add now minus what they added before, so that both sides were measured
    within the same pairs; for any other adaptation by its forward pass before and after. Values are medians over the
    windows, in processor time on a CPU, which a busy neighbour does not lengthen.

    Returns:
        None if the layer was not measured: the host has no held-out batch, or no measurement was due yet.
    """
    layer = adaptation.layer_id or ""
    new = [window for window in after if layer in (window.base_latency_ms or {})]
    old = [window for window in before if layer in (window.base_latency_ms or {})]
    if not new or not (old or adaptation.gated):
        return None
    together = median(sum(_forward_ms(window, each) for each in window.base_latency_ms or ()) for window in new)
    if adaptation.gated:
        # Without a measurement before it, the network had no kernels.
        earlier = median(_added_ms(window, layer) for window in old) if old else 0.0
        change = median(_added_ms(window, layer) for window in new) - earlier
    else:
        change = median(_forward_ms(window, layer) for window in new)
        change -= median(_forward_ms(window, layer) for window in old)
    return _LatencyChange(max(together - change, 0.0), together, MIN_LATENCY_NOISE, rc.FORWARD_ALLOWANCE_MS)


def _added_ms(window: WindowSummary, layer: str) -> float:
    return (window.kernel_latency_ms or {}).get(layer, 0.0)


def _forward_ms(window: WindowSummary, layer: str) -> float:
    return (window.base_latency_ms or {}).get(layer, 0.0) + _added_ms(window, layer)


def _latency_change(before: Sequence[WindowSummary], after: Sequence[WindowSummary]) -> _LatencyChange:
    """Compare medians over windows of their fastest step: for hosts that do not measure in pairs.

    The minimum within a window removes most of what other processes add, the median over windows the rest. The training
    step is what a user waits for; where it was not measured, the sum of the layers' forward passes replaces it.
    """
    for source, allowance_ms in (("step_time_ms", rc.STEP_ALLOWANCE_MS), ("layers_ms", rc.FORWARD_ALLOWANCE_MS)):
        old = [value for w in before if (value := getattr(w, source)) is not None]
        new = [value for w in after if (value := getattr(w, source)) is not None]
        if old and new:
            middle = median(old)
            spread = MAD_TO_SIGMA * median(abs(value - middle) for value in old)
            noise = LATENCY_NOISE_SIGMAS * spread / middle if middle > 0 else 0.0
            return _LatencyChange(middle, median(new), max(MIN_LATENCY_NOISE, noise), allowance_ms)
    return _LatencyChange()


def _variances(before: Sequence[WindowSummary], after: Sequence[WindowSummary]) -> tuple[float, float]:
    """Return the median latency variance before and after, in ms squared; 0 for both if one was not measured."""
    old = [w.latency_variance for w in before if w.latency_variance is not None]
    new = [w.latency_variance for w in after if w.latency_variance is not None]
    return (median(old), median(new)) if old and new else (0.0, 0.0)


def _error_rate(adaptation: ExecutedAdaptation, windows: Sequence[WindowSummary]) -> float:
    """Return the layer's mean error rate over `windows`."""
    if not windows or adaptation.layer_id is None:
        return 0.0
    return sum((w.errors or {}).get(adaptation.layer_id, 0.0) for w in windows) / len(windows)


def _recoveries(adaptation: ExecutedAdaptation, windows: Sequence[WindowSummary]) -> tuple[int, float | None]:
    """Return the number of the layer's recoveries, and the share that succeeded (None if there were none)."""
    layer = adaptation.layer_id or ""
    found = [w.recoveries[layer] for w in windows if w.recoveries and layer in w.recoveries]
    count = sum(attempts for attempts, _ in found)
    return count, sum(succeeded for _, succeeded in found) / count if count else None
