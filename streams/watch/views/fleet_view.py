"""The view of all runs."""

from collections.abc import Iterable
from typing import Any

from tamiyo.streams.watch.history import History
from tamiyo.streams.watch.history.decisions import DecisionHistory, Totals
from tamiyo.streams.watch.history.runs import QUIET_MS, RunHistory
from tamiyo.streams.watch.views.document import Document, document, number, numbers, since

MEASURED = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
BACK = 400  # points that are searched for a measurement that is made now and then


def fleet(history: History, *, at_ms: int | None = None, after: int = 0) -> Document:
    """Return all runs, or those that changed after a revision.

    Args:
        history: The installation's history.
        at_ms: The past time that the document is made as of, ms since the epoch; None: now.
        after: Revision of a document whose changes are wanted; it has no effect with `at_ms`.
    """
    after = since(at_ms, after)
    with history.lock:
        whole = after <= history.forgotten
        after = 0 if whole else after
        found = document(history, "fleet", at_ms=at_ms, whole=whole)
        rows = []
        for run in reversed(history.runs.values()):
            if run.revision <= after:
                break
            if at_ms is None or (run.first_ms is not None and run.first_ms <= at_ms):
                rows.append(run_row(history, run, at_ms))
        removed = [] if whole else [run_id for revision, run_id in history.removed if revision > after]
        return {**found, "runs": rows, "removed": [name for name in removed if name not in history.runs]}


def run_row(history: History, run: RunHistory, at_ms: int | None) -> dict[str, Any]:
    """Return the row of a run."""
    count = run.points.until(at_ms)
    last = {name: _last(column, count) for name, column in run.points.columns.items()}
    topology = run.topology or {}
    totals = _totals(run, at_ms)
    adapted = next((each for each in reversed(run.adaptations) if each.executed(at_ms) is not None), None)
    parameters = last["parameters"] if last["parameters"] is not None else topology.get("parameters")
    time_ms = run.newest_ms if at_ms is None else _newest_ms(run, count, at_ms)
    return {
        "run_id": run.run_id,
        "task": topology.get("task", ""),
        "state": run_state(history, run, time_ms, at_ms),
        "step": run.points.steps[count - 1] if count else 0,
        "planned_steps": topology.get("planned_steps"),
        "attached_ms": topology.get("attached_ms"),
        "time_ms": time_ms,
        **{name: last[name] for name in MEASURED},
        "sparkline": _sparkline(run, at_ms),
        "parameters": _whole(parameters),
        "base_parameters": _whole(last["base_parameters"]),
        "overhead_ratio": last["overhead_ratio"],
        "decisions": totals.decisions,
        "adaptations": totals.executed,
        "vetoed": totals.vetoed,
        "last_adaptation": None if adapted is None else _adaptation(adapted),
        "last_reward": _newest_reward(run.adaptations, "total", at_ms),
        "last_worth": _newest_reward(run.adaptations, "worth", at_ms),
        "worth": number(totals.worth) if totals.valued else None,
        "dropped_records": _whole(last["dropped_records"]) or 0,
    }


def run_state(history: History, run: RunHistory, time_ms: int, at_ms: int | None) -> str:
    """Return finished, silent, paused or training."""
    if run.ended(at_ms):
        return "finished"
    if history.now_ms(at_ms) - time_ms > QUIET_MS:
        return "silent"
    return "paused" if history.orders.standing(run.run_id, at_ms)[0].paused else "training"


def _totals(run: RunHistory, at_ms: int | None) -> Totals:
    if at_ms is None:
        return run.totals
    # Decisions that are no longer kept are older than those that are.
    counted = Totals(
        run.totals.decisions, run.totals.executed, run.totals.vetoed, valued=run.totals.valued, worth=run.totals.worth
    )
    for each in run.decisions.values():
        counted.add(each.share, -1)
        counted.add(each.share_at(at_ms))
    return counted


def _newest_ms(run: RunHistory, count: int, at_ms: int) -> int:
    """Return the time of the newest record up to a past time, as far as it is kept."""
    known = run.points.times[count - 1] if count else (run.first_ms or 0)
    return run.newest_ms if run.newest_ms <= at_ms else known


def _sparkline(run: RunHistory, at_ms: int | None) -> list[float | None]:
    for series in run.sparks.values():
        count = series.until(at_ms)
        if count:
            return numbers(series.columns["loss"][:count])
    return []


def _last(column: Any, count: int) -> float | None:
    """Return the newest measurement among the last points."""
    for place in range(count - 1, max(-1, count - 1 - BACK), -1):
        if column[place] == column[place]:
            return float(f"{column[place]:.7g}") if column.typecode == "f" else float(column[place])
    return None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _adaptation(decision: DecisionHistory) -> dict[str, Any] | None:
    decided, handled = decision.decided, decision.handled
    if decided is None or handled is None:
        return None
    return {"step": handled.step, "type": decided.type, "layer_id": decided.layer_id}


def _newest_reward(adaptations: Iterable[DecisionHistory], name: str, at_ms: int | None) -> float | None:
    for each in reversed(list(adaptations)):
        reward = each.reward_at(at_ms)
        value: float | None = getattr(reward, name) if reward is not None else None
        if value is not None:
            return value
    return None
