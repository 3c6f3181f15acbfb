"""The runs of an installation as a table."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from tamiyo.schemas.display import narrow
from tamiyo.streams.watch.terminal.canvas import (
    Canvas,
    age,
    count,
    gain,
    number,
    plural,
    source_line,
    state,
    table,
    words,
)

Row = dict[str, Any]
RANKS = {"training": 0, "paused": 1, "silent": 2, "finished": 3}
TREND = 12  # characters of a sparkline
COLUMNS: tuple[tuple[int, list[str]], ...] = tuple(
    (width, columns.split(", "))
    for width, columns in (
        (
            160,
            "run, task, state, step, loss, accuracy, trend, parameters, overhead, adapted, vetoed, last adaptation, "
            "reward, worth, seen",
        ),
        (
            130,
            "run, task, state, step, loss, accuracy, trend, parameters, overhead, adapted, vetoed, reward, worth, seen",
        ),
        (110, "run, task, state, step, loss, trend, parameters, adapted, vetoed, reward, worth, seen"),
        (0, "run, state, step, loss, trend, adapted, reward, seen"),
    )
)
"""By the least width of a terminal the columns that fit it, the widest first."""


def _newest(row: Row) -> Any:
    return -(row.get("time_ms") or 0)


def _descending(name: str) -> Callable[[Row], Any]:
    return lambda row: (row.get(name) is None, -(row.get(name) or 0))


def _loss(row: Row) -> Any:
    validation = row.get("validation_loss")
    return row.get("train_loss") if validation is None else validation


SORTS: dict[str, Callable[[Row], Any]] = {
    "state": lambda row: (RANKS.get(row.get("state") or "", 9), _newest(row)),
    "time": _newest,
    "run": lambda row: str(row.get("run_id")),
    "step": _descending("step"),
    "loss": lambda row: (_loss(row) is None, _loss(row) or 0.0),
    "adaptations": _descending("adaptations"),
    "reward": _descending("last_reward"),
    "worth": _descending("worth"),
    "overhead": _descending("overhead_ratio"),
}
"""By name the key that runs are sorted by: losses rise, other numbers fall; unknown ones are last."""


def selected(
    rows: Sequence[Row], *, states: Sequence[str] = (), task: str | None = None, sort: str = "state"
) -> list[Row]:
    """Return runs in order.

    Args:
        rows: of a fleet document.
        states: only runs in one of these states; empty: all.
        task: only runs whose task has this in its name, whatever its case.
        sort: a name in `SORTS`.
    """
    kept = [
        row
        for row in rows
        if (not states or row.get("state") in states)
        and (task is None or task.lower() in str(row.get("task") or "").lower())
    ]
    return sorted(kept, key=lambda row: (SORTS[sort](row), str(row.get("run_id"))))


def render_fleet(document: dict[str, Any], rows: Sequence[Row], canvas: Canvas) -> RenderableType:
    """Return runs as a table.

    Args:
        document: a fleet document.
        rows: those of its runs that are shown, in order, as `selected` returns them.
        canvas: the terminal.
    """
    now_ms = document.get("now_ms")
    right = ("step", "loss", "accuracy", "parameters", "overhead", "adapted", "vetoed", "reward", "worth", "seen")
    titles = next(columns for width, columns in COLUMNS if canvas.width >= width)
    made = table(*titles, right=right, fold=("run", "task", "last adaptation"))
    for row in rows:
        cells = _cells(row, canvas, now_ms)
        made.add_row(*(cells[title] for title in titles))
    counted = Counter(str(row.get("state")) for row in rows)
    known = len(document.get("runs") or ())
    shown = plural(known, "run") if len(rows) == known else f"{len(rows):,} of {plural(known, 'run')}"
    states = ", ".join(f"{counted[name]:,} {name}" for name in RANKS if counted[name])
    summary = Text(f"{shown}: {states}" if states else shown)
    return Group(*([narrow(made)] if rows else []), summary, source_line(document))


def _cells(row: Row, canvas: Canvas, now_ms: Any) -> dict[str, Text | str]:
    planned = row.get("planned_steps")
    step = count(row.get("step"))
    accuracy = row.get("validation_accuracy")
    return {
        "run": Text(words(row.get("run_id"))),
        "task": Text(words(row.get("task"))),
        "state": state(row.get("state")),
        "step": Text(f"{step}/{count(planned)}" if planned and canvas.wide else step),
        "loss": Text(number(_loss(row))),
        "accuracy": Text(number(row.get("train_accuracy") if accuracy is None else accuracy, ".3f")),
        "trend": Text(canvas.sparkline(row.get("sparkline") or [], TREND), "cyan"),
        "parameters": Text(count(row.get("parameters"))),
        "overhead": Text(number(row.get("overhead_ratio"), ".1%")),
        "adapted": Text(count(row.get("adaptations"))),
        "vetoed": Text(count(row.get("vetoed"))),
        "last adaptation": Text(_last(row.get("last_adaptation"))),
        "reward": gain(row.get("last_reward"), "+.2f"),
        "worth": gain(row.get("worth")),
        "seen": Text(age(row.get("time_ms"), now_ms)),
    }


def _last(adaptation: dict[str, Any] | None) -> str:
    if not adaptation:
        return "-"
    return f"{words(adaptation.get('type'))} {words(adaptation.get('layer_id'))} at {count(adaptation.get('step'))}"
