"""Attribute a change of the loss to an executed adaptation, over the time spans after it.

Two estimators measure what the adaptation gained: against the projected trend (`projection.py`) and against the
network with the layer's kernels gated off (`counterfactual.py`). `combine()` (`gain.py`) states which of them counts.

A span contains the windows whose middle is in it, counted from where the adaptation took effect. A span without a
measured gain is unseen: unknown, never 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tamiyo.schemas.learning import SpanReward
from tamiyo.streams.stages.rewards import components as rc
from tamiyo.streams.stages.rewards.adaptation import ExecutedAdaptation
from tamiyo.streams.stages.rewards.counterfactual import CounterfactualEstimator
from tamiyo.streams.stages.rewards.gain import Gain, combine
from tamiyo.streams.stages.rewards.measurements import span_components
from tamiyo.streams.stages.rewards.projection import ProjectionEstimator
from tamiyo.streams.stages.rewards.spans import Span
from tamiyo.streams.stages.rewards.status import RewardStatus
from tamiyo.streams.stages.rewards.window_summary import WindowSummary

MEASURABLE = 0.01  # relative loss reduction below which an adaptation does not count as an improvement

_UNEXECUTED_RISK = {
    RewardStatus.REFUSED: rc.REFUSED_RISK,
    RewardStatus.FAILED: rc.FAILED_RISK,
    RewardStatus.VETOED: rc.VETOED_RISK,
}


@dataclass(frozen=True, slots=True)
class RewardEstimate:
    """The reward of a decision, as far as it is known."""

    spans: tuple[SpanReward, ...]
    components: dict[str, float]
    """Mean over the spans seen, by their weight; empty if none was seen."""
    total: float
    """tanh of the weighted components, in [-1, 1]."""
    confidence: float
    """In 0..1: the weight of the spans seen, each times the confidence in its gain."""
    improvement: float | None
    """Relative loss reduction; None if no span was seen."""
    success: bool | None
    """Whether the improvement is above MEASURABLE; None if no span was seen."""
    last: WindowSummary | None
    """The last window used."""


def estimate_reward(
    adaptation: ExecutedAdaptation,
    windows: Sequence[WindowSummary],
    spans: Sequence[Span],
    closed: int,
    baseline_windows: int,
) -> RewardEstimate:
    """Estimate the reward of an executed adaptation.

    Args:
        adaptation: What was executed, and when it took effect.
        windows: The run's windows in order, before and after the adaptation.
        spans: All spans; their weights are renormalised over those seen.
        closed: How many of the spans have ended; later ones are unseen.
        baseline_windows: How many windows before the adaptation the projection is fitted to.

    Returns:
        An estimate with every component relative to doing nothing.
    """
    before = [window for window in windows if window.end <= adaptation.effective_at][-baseline_windows:]
    after = [window for window in windows if window.start >= adaptation.effective_at]
    counterfactual = CounterfactualEstimator(adaptation, before)
    projection = ProjectionEstimator(adaptation, before, counterfactual)
    rewards: list[SpanReward] = []
    gains: list[tuple[float, Gain]] = []
    last: WindowSummary | None = None
    for index, span in enumerate(spans):
        inside = [w for w in after if span.contains(w.middle - adaptation.effective_at)] if index < closed else []
        gain = combine(projection.gain(inside), counterfactual.gain(inside))
        components: dict[str, float] = {}
        if gain is not None:
            gains.append((span.weight, gain))
            last = inside[-1]
            so_far = [w for w in after if w.middle - adaptation.effective_at < span.end]
            components = span_components(adaptation, gain.value, before, so_far, inside)
        rewards.append(_span_reward(span, components, len(inside)))
    return _mean(rewards, gains, last)


def unexecuted(status: RewardStatus, spans: Sequence[Span]) -> RewardEstimate:
    """Return the reward of a decision that changed nothing.

    It is exactly 0 for no_op, slightly less for what was refused, vetoed or failed, and unknown for a dry run.
    """
    components = {**rc.NOTHING, rc.RISK: _UNEXECUTED_RISK.get(status, 0.0)}
    return RewardEstimate(
        spans=tuple(_span_reward(span, {}, 0) for span in spans),
        components=components,
        total=rc.total(components),
        confidence=0.0 if status is RewardStatus.DRY_RUN else 1.0,
        improvement=None,
        success=None,
        last=None,
    )


def _span_reward(span: Span, components: dict[str, float], windows: int) -> SpanReward:
    return SpanReward(
        name=span.name,
        weight=span.weight,
        start=span.start,
        end=span.end,
        seen=bool(components),
        windows=windows,
        components=components,
        total=rc.weighted_sum(components),
    )


def _mean(
    rewards: Sequence[SpanReward], gains: Sequence[tuple[float, Gain]], last: WindowSummary | None
) -> RewardEstimate:
    """Return the mean over the spans seen; `gains` has the weight and gain of each of them."""
    seen = [reward for reward in rewards if reward.seen]
    if not seen:
        return RewardEstimate(tuple(rewards), {}, 0.0, 0.0, None, None, None)
    weight = sum(reward.weight for reward in seen)
    components = {name: sum(r.weight * r.components[name] for r in seen) / weight for name in rc.WEIGHTS}
    improvement = -math.expm1(-sum(w * gain.value for w, gain in gains) / weight)
    return RewardEstimate(
        spans=tuple(rewards),
        components=components,
        total=rc.total(components),
        confidence=min(1.0, sum(w * gain.confidence for w, gain in gains)),
        improvement=improvement,
        success=improvement > MEASURABLE,
        last=last,
    )
