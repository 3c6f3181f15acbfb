"""Explain a reward in one sentence."""

from collections.abc import Mapping, Sequence

from tamiyo.schemas.adaptation import Action
from tamiyo.schemas.learning import SpanReward
from tamiyo.streams.stages.action_text import MAX_LENGTH, action_words
from tamiyo.streams.stages.rewards import components as rc

_WORDS = {
    rc.ACCURACY: "lower loss",
    rc.SPEED: "speed",
    rc.MEMORY: "parameters",
    rc.STABILITY: "stability",
    rc.COST: "cost",
    rc.RISK: "risk",
}


def explain_reward(
    action: Action,
    status: str,
    *,
    reason: str,
    spans: Sequence[SpanReward],
    components: Mapping[str, float],
    total: float,
    confidence: float,
    improvement: float | None,
) -> str:
    """Return what a decision was worth, and why; `reason` is the host's or the veto's where it was not executed."""
    if status == "none":
        return "Doing nothing is the measure of everything else: worth exactly 0."
    what = action_words(action)
    if status == "dry_run":
        return f"To {what} was recorded only (dry run): what it would have been worth is unknown."
    if status != "executed":
        return f"To {what} was {status}: {reason or 'no reason was given'}; worth {total:+.2f}."[:MAX_LENGTH]
    seen = sum(span.seen for span in spans)
    if improvement is None:
        return f"To {what} was executed; no loss was measured after it yet, so what it is worth is unknown."
    direction = "lowered" if improvement >= 0 else "raised"
    parts = sorted(
        ((rc.WEIGHTS[name] * value, name) for name, value in components.items()), key=lambda part: -abs(part[0])
    )
    told = ", ".join(f"{_WORDS[name]} {value:+.2f}" for value, name in parts if abs(value) >= 0.005)
    return (
        f"To {what} {direction} the loss by {abs(improvement):.1%} against where the run was heading, over {seen} of "
        f"{len(spans)} spans (confidence {confidence:.0%}); worth {total:+.2f}: {told}."
    )[:MAX_LENGTH]
