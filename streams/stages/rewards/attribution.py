"""What an executed adaptation was worth over the time spans after it.

Two measures say what the loss would be without it, and the *smaller* gain counts (but never a loss that the second
measure contradicts: a kernel that does good when it is on did not raise the loss above a projection that was too bold):

- the **projection** of the run's own loss (`projection.py`), which drift cannot fool but a coincidence can;
- the **counterfactual**: held-out loss with the layer's kernels gated off minus with them on, which a coincidence
  cannot fool, but a kernel can that the host merely cannot do without any more.

Spans begin where the adaptation took effect, and hold the windows that lie in them by their middle. After the next
executed adaptation a gain against the projection is not this one's alone: it is shared by what the counterfactual
says each layer's kernels are worth, and where nothing was gated there is no telling, so the span stays unseen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tamiyo.schemas.learning import SpanReward
from tamiyo.streams.stages.rewards import components as rc
from tamiyo.streams.stages.rewards.projection import MAD_TO_SIGMA, Projection
from tamiyo.streams.stages.rewards.window_summary import WindowSummary

SPAN_WEIGHTS = {"immediate": 0.3, "short_term": 0.4, "medium_term": 0.25, "long_term": 0.05}

MIN_LATENCY_NOISE = 0.05  # relative; below it a shared machine's step time says nothing
LATENCY_NOISE_SIGMAS = 3.0
LARGEST_GAIN = rc.ACCURACY_BOUND * rc.GAIN_UNIT
NOISE_AT_HALF_CONFIDENCE = 0.2  # log loss a window: a baseline that wanders by a fifth says half as much
UNPROJECTED_CONFIDENCE = 0.5  # no baseline: a kernel the host merely cannot do without looks as good as a useful one
MEASURABLE = 0.01  # relative loss reduction below which nothing is called an improvement


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the run's clock after an adaptation, `start` inside, `end` outside."""

    name: str
    weight: float
    start: float
    end: float


def make_spans(ends: Sequence[float]) -> tuple[Span, ...]:
    """Return the four spans for their ends in the clock's unit, increasing."""
    starts = (0.0, *ends[:-1])
    rows = zip(SPAN_WEIGHTS.items(), starts, ends, strict=True)
    return tuple(Span(name, weight, start, end) for (name, weight), start, end in rows)


@dataclass(frozen=True, slots=True)
class ExecutedAdaptation:
    """An executed adaptation, as far as its reward depends on it."""

    effective_at: float
    """Clock value at which it took effect."""
    layer_id: str | None
    gated: bool
    """Whether the counterfactual measures it: True for kernels that were loaded."""
    parameters_added: int
    parameter_budget: int
    uncertainty: float
    next_adaptation_at: float = math.inf
    """Clock value of the run's next executed adaptation."""


@dataclass(frozen=True, slots=True)
class RewardEstimate:
    """What is known of an adaptation's worth."""

    spans: tuple[SpanReward, ...]
    components: dict[str, float]
    """Mean over the spans seen, by their weight; empty where none was."""
    total: float
    confidence: float
    improvement: float | None
    """Relative loss reduction; None where no span was seen."""
    success: bool | None
    """Whether the improvement is above what noise alone would show; None where no span was seen."""
    last: WindowSummary | None
    """The last window used."""


@dataclass(frozen=True, slots=True)
class _Gain:
    value: float
    """Log(loss without / loss with), what noise could make taken off."""
    noise: float | None
    """Of the projection; None where there was none."""


def estimate_reward(
    case: ExecutedAdaptation,
    windows: Sequence[WindowSummary],
    spans: Sequence[Span],
    closed: int,
    baseline_windows: int,
) -> RewardEstimate:
    """Judge `case` by the run's windows in order; spans from index `closed` on have not begun to be looked at."""
    before = [window for window in windows if window.end <= case.effective_at][-baseline_windows:]
    after = [window for window in windows if window.start >= case.effective_at]
    rewards: list[SpanReward] = []
    gains: list[tuple[float, _Gain]] = []
    last: WindowSummary | None = None
    for index, span in enumerate(spans):
        inside = [w for w in after if span.start <= w.middle - case.effective_at < span.end] if index < closed else []
        gain = _gain(case, before, inside)
        components: dict[str, float] = {}
        if gain is not None:
            gains.append((span.weight, gain))
            last = inside[-1]
            so_far = [w for w in after if w.middle - case.effective_at < span.end]
            components = _components(case, gain.value, before, so_far, inside)
        rewards.append(
            SpanReward(
                name=span.name,
                weight=span.weight,
                start=span.start,
                end=span.end,
                seen=gain is not None,
                windows=len(inside),
                components=components,
                total=rc.weighted_sum(components),
            )
        )
    seen = [reward for reward in rewards if reward.seen]
    weight = sum(reward.weight for reward in seen)
    if not seen:
        return RewardEstimate(tuple(rewards), {}, 0.0, 0.0, None, None, None)
    mean = {name: sum(r.weight * r.components[name] for r in seen) / weight for name in rc.WEIGHTS}
    gain_mean = sum(w * g.value for w, g in gains) / weight
    improvement = -math.expm1(-gain_mean)
    return RewardEstimate(
        spans=tuple(rewards),
        components=mean,
        total=rc.total(mean),
        confidence=min(1.0, sum(w * _trust(g) for w, g in gains)),
        improvement=improvement,
        success=improvement > MEASURABLE,
        last=last,
    )


def _trust(gain: _Gain) -> float:
    if gain.noise is None:
        return UNPROJECTED_CONFIDENCE
    return 1.0 / (1.0 + gain.noise / NOISE_AT_HALF_CONFIDENCE)


def _gain(case: ExecutedAdaptation, before: Sequence[WindowSummary], inside: Sequence[WindowSummary]) -> _Gain | None:
    """Return the smaller of the two measured gains over a span's windows, or None where neither is known."""
    for series in ("validation_loss", "train_loss"):
        history = [(w.middle, loss) for w in before if (loss := getattr(w, series)) is not None]
        projection = Projection.fit([time for time, _ in history], [loss for _, loss in history], case.effective_at)
        points = [(w, loss) for w in inside if (loss := getattr(w, series)) is not None and loss > 0]
        if projection is None or not points:
            continue
        gated = _counterfactual(case, before, inside)
        projected = [
            share * (projection.log_loss(w.middle) - math.log(loss))
            for w, loss in points
            if (share := _share(case, before, w)) is not None
        ]
        if projected:
            value = median(projected)
            value -= min(projection.margin, max(value, 0.0))
            return _Gain(value if gated is None else _agreed(value, gated), projection.noise)
    gated = _counterfactual(case, before, inside)
    return None if gated is None else _Gain(gated, None)


def _agreed(projected: float, gated: float) -> float:
    """Return the smaller gain; where gating the kernel off does harm, a loss above the projection is not its doing."""
    return max(0.0, min(projected, gated)) if gated > 0 else min(projected, gated)


def _contribution(
    case: ExecutedAdaptation, before: Sequence[WindowSummary], window: WindowSummary, layer: str
) -> float | None:
    """What a layer's kernels gained in contribution since the adaptation; None where not measured."""
    if window.contribution is None or layer not in window.contribution:
        return None
    earlier = [w.contribution[layer] for w in before if w.contribution is not None and layer in w.contribution]
    return window.contribution[layer] - (earlier[-1] if earlier else 0.0)


def _counterfactual(
    case: ExecutedAdaptation, before: Sequence[WindowSummary], inside: Sequence[WindowSummary]
) -> float | None:
    if not case.gated or case.layer_id is None:
        return None
    held_out = [w.validation_loss for w in inside if w.validation_loss is not None]
    gains = []
    for window in inside:
        contribution = _contribution(case, before, window, case.layer_id)
        loss = window.validation_loss or (median(held_out) if held_out else window.train_loss)
        if contribution is None or loss is None or loss <= 0:
            continue
        # A kernel that does more harm than the whole loss cannot be: bounded as the component is.
        ratio = max((loss + contribution) / loss, math.exp(-LARGEST_GAIN))
        gains.append(math.log(ratio))
    return median(gains) if gains else None


def _share(case: ExecutedAdaptation, before: Sequence[WindowSummary], window: WindowSummary) -> float | None:
    """Return the part of a window's gain against the projection that is this adaptation's; None: no telling."""
    if window.end <= case.next_adaptation_at:
        return 1.0
    if not case.gated or case.layer_id is None:
        return None
    own = _contribution(case, before, window, case.layer_id)
    if own is None or window.contribution is None:
        return None
    everyone = [_contribution(case, before, window, layer) or 0.0 for layer in window.contribution]
    positive = sum(max(0.0, value) for value in everyone)
    return max(0.0, own) / positive if positive > 0 else 0.0


def _components(
    case: ExecutedAdaptation,
    gain: float,
    before: Sequence[WindowSummary],
    so_far: Sequence[WindowSummary],
    inside: Sequence[WindowSummary],
) -> dict[str, float]:
    # Another adaptation's latency is not this one's: only what was measured until then counts.
    alone = [w for w in so_far if w.end <= case.next_adaptation_at]
    slow_before, slow_after, noise, allowance = _latencies(before, alone)
    errors_before, errors_after = _error_rate(case, before), _error_rate(case, inside)
    layer = case.layer_id or ""
    recovered = [w.recoveries[layer] for w in inside if w.recoveries and layer in w.recoveries]
    recoveries = sum(count for count, _ in recovered)
    recovery_rate = sum(good for _, good in recovered) / recoveries if recoveries else None
    slowdown = (slow_after - slow_before) / slow_before if slow_before > 0 else 0.0
    return {
        rc.ACCURACY: rc.accuracy_of_gain(gain),
        rc.SPEED: rc.relative_speed(slow_before, slow_after, noise=noise, allowance_ms=allowance),
        rc.MEMORY: rc.memory_efficiency(case.parameters_added, case.parameter_budget),
        rc.STABILITY: rc.relative_stability(errors_before, errors_after, recovery_rate, *_variances(before, alone)),
        rc.COST: rc.adaptation_cost(
            case.parameters_added, case.parameter_budget, slowdown if slowdown > noise else 0.0
        ),
        rc.RISK: rc.risk_penalty(errors_before, errors_after, recoveries, case.uncertainty),
    }


def _latencies(before: Sequence[WindowSummary], after: Sequence[WindowSummary]) -> tuple[float, float, float, float]:
    """Return (before, after, relative noise, allowance): medians over windows of their fastest step, in ms.

    The minimum inside a window leaves out what other processes add, the median over windows what is left of it. The
    training step is what a user waits for; where it was not measured, the layers' forward passes stand for it.
    """
    for source, allowance in (("step_time_ms", rc.STEP_ALLOWANCE_MS), ("layers_ms", rc.FORWARD_ALLOWANCE_MS)):
        old = [value for w in before if (value := getattr(w, source)) is not None]
        new = [value for w in after if (value := getattr(w, source)) is not None]
        if old and new:
            middle = median(old)
            spread = MAD_TO_SIGMA * median(abs(value - middle) for value in old)
            noise = LATENCY_NOISE_SIGMAS * spread / middle if middle > 0 else 0.0
            return middle, median(new), max(MIN_LATENCY_NOISE, noise), allowance
    return 0.0, 0.0, MIN_LATENCY_NOISE, 0.0


def _variances(before: Sequence[WindowSummary], after: Sequence[WindowSummary]) -> tuple[float, float]:
    old = [w.latency_variance for w in before if w.latency_variance is not None]
    new = [w.latency_variance for w in after if w.latency_variance is not None]
    return (median(old), median(new)) if old and new else (0.0, 0.0)


def _error_rate(case: ExecutedAdaptation, windows: Sequence[WindowSummary]) -> float:
    if not windows or case.layer_id is None:
        return 0.0
    return sum((w.errors or {}).get(case.layer_id, 0.0) for w in windows) / len(windows)
