"""Attribute a change of the loss to an executed adaptation, over the time spans after it.

An estimator (`estimator.py`) states what the adaptation gained, from the evidence known at the end of each span
(`evidence.py`). The gain less its costs is the adaptation's worth (`worth.py`); the specification's six components,
weights and tanh make the total of it.

A span contains the windows whose middle is in it, counted from where the adaptation took effect. A span without a
measured gain is unseen: unknown, never 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tamiyo.schemas.learning import SpanReward
from tamiyo.streams.stages.rewards import components as rc
from tamiyo.streams.stages.rewards.estimator import GainEstimator
from tamiyo.streams.stages.rewards.evidence import Case
from tamiyo.streams.stages.rewards.gain import Gain
from tamiyo.streams.stages.rewards.measurements import span_components
from tamiyo.streams.stages.rewards.spans import Span
from tamiyo.streams.stages.rewards.status import RewardStatus
from tamiyo.streams.stages.rewards.window_summary import WindowSummary
from tamiyo.streams.stages.rewards.worth import ADAPTATION_COST, cost

MEASURABLE = 0.01  # relative loss reduction below which an adaptation does not count as an improvement

_UNEXECUTED_RISK = {
    RewardStatus.REFUSED: rc.REFUSED_RISK,
    RewardStatus.FAILED: rc.FAILED_RISK,
    RewardStatus.VETOED: rc.VETOED_RISK,
}

_UNEXECUTED_COST = {
    RewardStatus.REFUSED: ADAPTATION_COST,
    RewardStatus.FAILED: 2 * ADAPTATION_COST,
    RewardStatus.VETOED: ADAPTATION_COST,
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
    worth: float | None = None
    """Gain less costs, nats of log loss; the worths of a run add up. None if no span was seen."""
    half_width: float | None = None
    """Half of the 90 % interval of the worth, nats; None if the estimator has none."""
    estimator: str = ""
    """Version of the gain's estimator; empty if nothing was estimated."""


def estimate_reward(cases: Sequence[Case | None], spans: Sequence[Span], estimator: GainEstimator) -> RewardEstimate:
    """Estimate the reward of an executed adaptation.

    Args:
        cases: What was known at the end of each span, in order; None for a span that has not ended.
        spans: All spans; their weights are renormalised over those seen.
        estimator: Estimates the gain. Every span's gain is a view of the same quantity as it becomes known, so the
            newest replaces the earlier ones in the whole.

    Returns:
        An estimate with every component relative to doing nothing.
    """
    rewards: list[SpanReward] = []
    gains: list[tuple[float, Gain]] = []
    newest: Case | None = None
    for span, case in zip(spans, cases, strict=True):
        gain = None if case is None else estimator.gain(case)
        components: dict[str, float] = {}
        if case is not None and gain is not None:
            gains.append((span.weight, gain))
            newest = case
            components = span_components(case.adaptation, gain.value, case.before, case.after, case.inside)
        rewards.append(_span_reward(span, components, 0 if case is None else len(case.inside)))
    return _combined(rewards, gains, newest, estimator)


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
        worth=None if status is RewardStatus.DRY_RUN else -_UNEXECUTED_COST.get(status, 0.0),
        half_width=None if status is RewardStatus.DRY_RUN else 0.0,
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


def _combined(
    rewards: Sequence[SpanReward], gains: Sequence[tuple[float, Gain]], newest: Case | None, estimator: GainEstimator
) -> RewardEstimate:
    """Return the reward over the spans seen; `gains` has the weight and gain of each of them."""
    seen = [reward for reward in rewards if reward.seen]
    if not seen or newest is None:
        return RewardEstimate(tuple(rewards), {}, 0.0, 0.0, None, None, None)
    weight = sum(reward.weight for reward in seen)
    components = {name: sum(r.weight * r.components[name] for r in seen) / weight for name in rc.WEIGHTS}
    if estimator.one_quantity:
        gain = gains[-1][1]
        components[rc.ACCURACY] = rc.accuracy_improvement(gain.value)
        confidence = gain.confidence
    else:
        gain = Gain(sum(w * gain.value for w, gain in gains) / weight)
        confidence = sum(w * gain.confidence for w, gain in gains)
    improvement = -math.expm1(-(gain.value if gain.near is None else gain.near))
    adaptation = newest.adaptation
    return RewardEstimate(
        spans=tuple(rewards),
        components=components,
        total=rc.total(components),
        confidence=min(1.0, confidence),
        improvement=improvement,
        success=improvement > MEASURABLE,
        last=newest.inside[-1],
        worth=gain.value - cost(adaptation.parameters_added, adaptation.parameter_budget),
        half_width=gain.half_width,
        estimator=estimator.version,
    )
