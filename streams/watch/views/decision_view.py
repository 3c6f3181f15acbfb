"""The view of one decision: what could be done, what was chosen and why, and what it earned."""

import math
from typing import Any

from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, CompiledKernel, DecisionType
from tamiyo.schemas.codec import decode
from tamiyo.schemas.learning import RewardAnalysis
from tamiyo.streams.watch.history import History
from tamiyo.streams.watch.history.decisions import DecisionHistory
from tamiyo.streams.watch.views.decision_row import decision_row
from tamiyo.streams.watch.views.document import Document, UnknownIdError, document, number
from tamiyo.streams.watch.views.mask_reasons import MaskReasons
from tamiyo.streams.watch.views.run_view import known_run

MAX_ACTIONS = 500


def decision(history: History, run_id: str, decision_id: str, *, at_ms: int | None = None, after: int = 0) -> Document:
    """Return one decision; always whole.

    Args:
        history: The installation's history.
        run_id: The decision's run.
        decision_id: The decision.
        at_ms: The past time that the document is made as of, ms since the epoch; None: now.
        after: Revision of a document whose changes are wanted; a decision's document is always whole.

    Raises:
        UnknownIdError: There is no such run or decision at that time.
        RegistryError: Its records need a schema registry, which is unavailable.
    """
    with history.lock:
        run = known_run(history, run_id, at_ms)
        found = run.decisions.get(decision_id)
        row = None if found is None else decision_row(found, at_ms)
        if found is None or row is None:
            raise UnknownIdError(f"run {run_id!r} has no decision {decision_id!r}" + _why(found))
        envelope = document(history, "decision", at_ms=at_ms, whole=True)
        raw, kernel, handled = found.raw, found.kernel_at(at_ms), found.outcome_at(at_ms)
        rewards = [each.raw for each in found.rewards if at_ms is None or each.time_ms <= at_ms]
        details = found.details
    record = None if raw is None else decode(raw, AdaptationDecision)  # it may wait for a schema registry
    with history.lock:
        reasons = None if record is None else MaskReasons.of(run, record, history.orders.issued(record.orders))
    return {
        **envelope,
        "run_id": run_id,
        "decision": {**row, **({} if record is None else _details(record))},
        **_choice(record, reasons),
        "kernel": None if kernel is None or kernel.raw is None else _kernel(decode(kernel.raw, CompiledKernel)),
        "outcome": None if handled is None or handled.raw is None else _outcome(decode(handled.raw, AdaptationOutcome)),
        "rewards": [_reward(decode(each, RewardAnalysis)) for each in rewards if each is not None],
        "details_kept": details,
    }


def _why(found: DecisionHistory | None) -> str:
    return "" if found is None else " at that time"


def _details(record: AdaptationDecision) -> dict[str, Any]:
    return {
        "graph_id": record.graph_id,
        "entropy": record.entropy,
        "log_probability": record.log_probability,
        "temperature": record.temperature,
        "value": record.value,
        "seed": str(record.seed),  # it has more digits than a number in JavaScript
        "explanation": record.explanation,
        "vetoes": [{"by": veto.by, "reason": veto.reason} for veto in record.vetoes],
        "orders": record.orders,
    }


def _choice(record: AdaptationDecision | None, reasons: MaskReasons | None) -> dict[str, Any]:
    """Return the actions with their probabilities, the most probable first, and why others were masked."""
    if record is None or reasons is None:
        return {"actions": [], "actions_left_out": 0, "layers": [], "kinds": []}
    probabilities = record.probabilities.numpy().ravel().tolist()
    # The catalogue of actions is as long as the mask; a damaged record may have fewer probabilities.
    count = min(len(record.mask), len(probabilities), 1 + len(record.layers) * len(record.kinds))
    order = sorted(range(count), key=lambda index: (-probabilities[index], not record.mask[index], index))
    kept = order[:MAX_ACTIONS]
    if record.action_index in order[MAX_ACTIONS:]:
        kept = [*kept[:-1], record.action_index]
    actions = [_action(record, index, probabilities[index]) for index in kept]
    return {
        "actions": [{**each, "reason": None if each["legal"] else reasons.reason(each)} for each in actions],
        "actions_left_out": count - len(kept),
        "layers": record.layers,
        "kinds": record.kinds,
    }


def _action(record: AdaptationDecision, index: int, probability: float) -> dict[str, Any]:
    chosen = {"probability": probability, "legal": record.mask[index] == 1, "chosen": index == record.action_index}
    if index == 0:
        no_op = DecisionType.NO_OP.value
        return {"type": no_op, "layer_id": None, "blueprint": None, "kind": no_op, **chosen}
    layer, kind = divmod(index - 1, len(record.kinds))
    name, _, blueprint = record.kinds[kind].partition(":")
    return {
        "type": name,
        "layer_id": record.layers[layer],
        "blueprint": blueprint or None,
        "kind": record.kinds[kind],
        **chosen,
    }


def _kernel(record: CompiledKernel) -> dict[str, Any]:
    return {
        "status": record.status.value,
        "reason": record.reason,
        "parameters": record.parameters,
        "size_bytes": record.size_bytes,
        "compile_time_ms": record.compile_time_ms,
    }


def _outcome(record: AdaptationOutcome) -> dict[str, Any]:
    return {
        "step": record.step,
        "time_ms": record.time_ms,
        "status": record.status.value,
        "reason": record.reason,
        "before": record.before,
        "after": record.after,
        "duration_ms": record.duration_ms,
    }


def _reward(record: RewardAnalysis) -> dict[str, Any]:
    waterfall: list[dict[str, Any]] = [
        {
            "component": name,
            "value": value,
            "weight": record.weights.get(name),
            "contribution": number(record.weights.get(name, 0.0) * value),
        }
        for name, value in record.components.items()
    ]
    return {
        "revision": record.revision,
        "time_ms": record.time_ms,
        "step": record.step,
        "status": record.status,
        "total": record.total,
        "confidence": record.confidence,
        "improvement": record.improvement,
        "predicted_reward": record.predicted_reward,
        "worth": record.worth,
        "worth_half_width": record.worth_half_width,
        "estimator": record.estimator,
        "complete": record.complete,
        "explanation": record.explanation,
        "spans": [span.model_dump() for span in record.spans],
        "components": record.components,
        "weights": record.weights,
        "waterfall": waterfall,
        "sum": number(math.fsum(each["contribution"] or 0.0 for each in waterfall)) if waterfall else None,
    }
