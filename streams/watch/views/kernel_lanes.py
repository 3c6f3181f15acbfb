"""The kernels of a run, each with what happened to it: the lanes of a swimlane."""

from typing import Any

from tamiyo.schemas.adaptation import DecisionType
from tamiyo.streams.watch.history.decisions import DecisionHistory
from tamiyo.streams.watch.history.runs import RunHistory
from tamiyo.streams.watch.views.decision_row import decision_status

ENDS = {"refused": "refused", "failed": "failed", "dry_run": "refused"}


def kernel_lanes(run: RunHistory, at_ms: int | None) -> list[dict[str, Any]]:
    """Return the kernels that decisions requested, in order of the request."""
    known = [each for each in run.adaptations if each.known(at_ms) is not None]
    lanes = {lane["kernel_id"]: lane for each in known if (lane := _requested(each, at_ms)) is not None}
    handled = [(each.decided, outcome) for each in known if (outcome := each.executed(at_ms)) is not None]
    for decided, outcome in sorted(handled, key=lambda pair: pair[1].step):
        lane = lanes.get(outcome.kernel_id or "")
        if decided is None or lane is None:
            continue
        if decided.type == DecisionType.UNLOAD_KERNEL.value:
            lane.update(status="unloaded", ended_step=outcome.step)
        elif decided.type == DecisionType.FOSSILIZE_KERNEL.value:
            lane.update(status="fossilized", fossilized_step=outcome.step)
    for kernel_id, (time_ms, step) in run.removed_kernels.items():
        lane = lanes.get(kernel_id)
        if lane is not None and lane["ended_step"] is None and (at_ms is None or time_ms <= at_ms):
            lane.update(status="unloaded", ended_step=step, reason="the host unloaded it after an error")
    return list(lanes.values())


def _requested(decision: DecisionHistory, at_ms: int | None) -> dict[str, Any] | None:
    decided, kernel, outcome = decision.decided, decision.kernel_at(at_ms), decision.outcome_at(at_ms)
    if decided is None or decided.type != DecisionType.LOAD_KERNEL.value or decided.kernel_id is None:
        return None
    status, reason = decision_status(decision, at_ms)
    active = status == "executed"
    ended = outcome.step if outcome is not None and not active else decided.step if status in ENDS else None
    return {
        "kernel_id": decided.kernel_id,
        "layer_id": decided.layer_id or "",
        "blueprint": decided.blueprint or "",
        "decision_id": decision.decision_id,
        "parameters": kernel.parameters if kernel is not None and not kernel.refused else None,
        "status": "active" if active else ENDS.get(status, "loading"),
        "reason": "dry run" if status == "dry_run" else reason,
        "requested_step": decided.step,
        "active_step": outcome.step if outcome is not None and active else None,
        "fossilized_step": None,
        "ended_step": ended,
    }
