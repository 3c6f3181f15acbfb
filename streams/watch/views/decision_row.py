"""A decision as a row of a table."""

from typing import Any

from tamiyo.schemas.adaptation import DecisionType
from tamiyo.streams.watch.history.decisions import DecisionHistory


def decision_status(decision: DecisionHistory, at_ms: int | None) -> tuple[str, str]:
    """Return the status of a known decision, and the reason if it was not executed."""
    decided, kernel, handled = decision.decided, decision.kernel_at(at_ms), decision.outcome_at(at_ms)
    if decided is None:
        return "pending", ""
    if handled is not None:
        return handled.status, handled.reason
    if decided.type == DecisionType.NO_OP.value:
        return ("vetoed" if decided.vetoed_by else "none"), ""
    if kernel is not None and kernel.refused:
        return "refused", kernel.reason
    return ("dry_run" if decided.dry_run else "pending"), ""


def decision_row(decision: DecisionHistory, at_ms: int | None) -> dict[str, Any] | None:
    """Return the row of a decision, None where it is not known at that time."""
    decided = decision.known(at_ms)
    if decided is None:
        return None
    status, reason = decision_status(decision, at_ms)
    handled, reward = decision.outcome_at(at_ms), decision.reward_at(at_ms)
    return {
        "decision_id": decision.decision_id,
        "step": decided.step,
        "time_ms": decided.event_ms,
        "type": decided.type,
        "layer_id": decided.layer_id,
        "blueprint": decided.blueprint,
        "kernel_id": decided.kernel_id,
        "proposed": {
            "type": decided.proposed.type,
            "layer_id": decided.proposed.layer_id,
            "blueprint": decided.proposed.blueprint,
        },
        "vetoed_by": list(decided.vetoed_by),
        "dry_run": decided.dry_run,
        "confidence": decided.confidence,
        "uncertainty": decided.uncertainty,
        "urgency": decided.urgency,
        "predicted_reward": decided.predicted_reward,
        "policy_version": decided.policy_version,
        "method": decided.method,
        "status": status,
        "reason": reason,
        "outcome_step": handled.step if handled is not None else None,
        "reward": reward.total if reward is not None else None,
        "reward_complete": reward is not None and reward.complete,
        "worth": reward.worth if reward is not None else None,
        "worth_half_width": reward.worth_half_width if reward is not None else None,
    }
