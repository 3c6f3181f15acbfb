"""Explain a reward in an engineer's note of one or two sentences."""

from collections.abc import Mapping

from tamiyo.schemas.adaptation import Action
from tamiyo.streams.stages.action_text import MAX_LENGTH, gerund
from tamiyo.streams.stages.rewards import components as rc
from tamiyo.streams.stages.rewards.attribution import RewardEstimate
from tamiyo.streams.stages.rewards.status import RewardStatus

SMALLEST_SHOWN = 0.005  # a weighted component that would print as 0.00 is left out

_LABELS = {
    rc.ACCURACY: "lower loss",
    rc.SPEED: "speed",
    rc.MEMORY: "parameters",
    rc.STABILITY: "stability",
    rc.COST: "cost",
    rc.RISK: "risk",
}

_UNEXECUTED = {
    RewardStatus.REFUSED: "was refused by the host",
    RewardStatus.FAILED: "failed",
    RewardStatus.VETOED: "was vetoed",
}


def explain_reward(action: Action, status: RewardStatus, estimate: RewardEstimate, *, reason: str = "") -> str:
    """Return what a decision earned, and why.

    Args:
        action: What was executed, or what was proposed and not executed.
        status: How the decision ended.
        estimate: The reward.
        reason: The host's or the vetoes' reason if it was not executed.
    """
    return _explain(action, status, estimate, reason)[:MAX_LENGTH]


def _explain(action: Action, status: RewardStatus, estimate: RewardEstimate, reason: str) -> str:
    if status is RewardStatus.NONE:
        return "No adaptation. Reward 0 by definition: every other reward is relative to it."
    what = gerund(action)
    if status is RewardStatus.DRY_RUN:
        return f"{what} was recorded only (dry run). Reward unknown: it was not executed."
    reward = f"Reward {estimate.total:+.2f}"
    if status is not RewardStatus.EXECUTED:
        return f"{what} {_UNEXECUTED[status]}: {reason or 'no reason was given'}. {reward}."
    if estimate.improvement is None:
        return f"{what} was executed. Reward unknown: no loss has been measured since."
    changed = "lowered" if estimate.improvement >= 0 else "raised"
    seen = sum(span.seen for span in estimate.spans)
    return (
        f"{what} {changed} the loss by {abs(estimate.improvement):.1%} compared with the run without it "
        f"({seen} of {len(estimate.spans)} spans).{_worth(estimate)} {reward}{_parts(estimate.components)} "
        f"(confidence {estimate.confidence:.0%})."
    )


def _worth(estimate: RewardEstimate) -> str:
    """Return the worth in the run's final objective with its interval, if the estimator has one."""
    if estimate.worth is None or estimate.half_width is None:
        return ""
    return f" Worth {estimate.worth:+.2f} +- {estimate.half_width:.2f} nats by the end of the run."


def _parts(components: Mapping[str, float]) -> str:
    """Return the weighted components, largest first, e.g. ": lower loss +0.16, cost -0.13"."""
    weighted = sorted(((rc.WEIGHTS[name] * value, name) for name, value in components.items()), key=_size)
    shown = [f"{_label(name, value)} {value:+.2f}" for value, name in weighted if abs(value) >= SMALLEST_SHOWN]
    return f": {', '.join(shown)}" if shown else ""


def _size(part: tuple[float, str]) -> float:
    return -abs(part[0])


def _label(name: str, value: float) -> str:
    return "higher loss" if name == rc.ACCURACY and value < 0 else _LABELS[name]
