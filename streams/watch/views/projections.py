"""The loss of a run as it was projected before an adaptation: the line without it."""

import math
from typing import Any

from tamiyo.streams.stages.rewards.projection import Projection
from tamiyo.streams.watch.history.decisions import DecisionHistory
from tamiyo.streams.watch.history.runs import RunHistory
from tamiyo.streams.watch.views.document import numbers

BASELINE_WINDOWS = 12  # as the stage has it by default (TAMIYO_REWARD_BASELINE_WINDOWS)
STEPS = 600
POINTS = 31


def projections(run: RunHistory, at_ms: int | None, after: int) -> list[dict[str, Any]]:
    """Return a line for each executed adaptation, of those whose line changed after a revision."""
    count = run.points.until(at_ms)
    newest = run.points.steps[count - 1] if count else 0
    begin = run.points.since(after, count)
    shown = run.points.steps[begin - 1] if begin > 0 else -1  # the newest step when the lines were last made
    found = []
    for each in run.adaptations:
        handled = each.executed(at_ms)
        if handled is None or not (each.revision > after or (newest > shown and shown < handled.step + STEPS)):
            continue
        line = _line(run, each, handled.step, newest)
        if line is not None:
            found.append({"decision_id": each.decision_id, **line})
    return found


def _line(run: RunHistory, decision: DecisionHistory, origin: int, newest: int) -> dict[str, Any] | None:
    end = min(origin + STEPS, newest)
    fitted = _fitted(run, decision.decision_id, origin)
    if fitted is None or end <= origin:
        return None
    steps = sorted({origin + round((end - origin) * part / (POINTS - 1)) for part in range(POINTS)})
    return {"step": steps, "loss": numbers([math.exp(min(700.0, fitted.log_loss(step))) for step in steps])}


def _fitted(run: RunHistory, decision_id: str, origin: int) -> Projection | None:
    """Fit a decision's projection once: to the windows before it, as the rewards stage does."""
    if decision_id in run.projections:
        known: Projection | None = run.projections[decision_id]
        return known
    windows = run.windows
    count = sum(1 for end in windows.columns["end"] if end <= origin)
    places = range(max(0, count - BASELINE_WINDOWS), count)
    fitted = None
    for name in ("validation_loss", "train_loss"):
        pairs = [
            (windows.columns["middle"][place], loss)
            for place in places
            if (loss := windows.columns[name][place]) == loss
        ]
        fitted = Projection.fit([time for time, _ in pairs], [loss for _, loss in pairs], float(origin))
        if fitted is not None:
            break
    if count < len(windows):  # all windows before it have been read
        run.projections[decision_id] = fitted
    return fitted
