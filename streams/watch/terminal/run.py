"""One run: its state, curves, decisions, kernels and layers."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from tamiyo.streams.watch.terminal.canvas import (
    Canvas,
    action,
    age,
    count,
    fitted,
    gain,
    number,
    plural,
    size,
    source_line,
    state,
    summary,
    table,
    words,
)

Document = dict[str, Any]
CHART_ROWS = 4
LAYERS = 8  # layers that are listed, those in the worst health first
ERRORS = 3
ALIVE = ("loading", "active", "fossilized")
COMPONENTS = {
    "accuracy_improvement": "accuracy", "speed_improvement": "speed", "memory_efficiency": "memory",
    "stability_improvement": "stability", "adaptation_cost": "cost", "risk_penalty": "risk",
}  # fmt: skip
"""Short names of the components of a reward."""


def render_run(
    document: Document,
    canvas: Canvas,
    *,
    decisions: int = 15,
    no_ops: bool = False,
    details: Mapping[str, Document] | None = None,
) -> RenderableType:
    """Return a run as text.

    Args:
        document: a run document.
        canvas: the terminal.
        decisions: how many of the newest decisions are listed.
        no_ops: list decisions to do nothing too, unless they were vetoed, which are always listed.
        details: decision documents of listed decisions, by decision; their rewards are shown by component.
    """
    run = document.get("run") or {}
    rows = shown_decisions(document, decisions, no_ops=no_ops)
    parts: list[RenderableType] = [_title(run), _summary(run, document, canvas), *_orders(run), Text()]
    parts += _curves(document, canvas)
    parts += _decisions(document, rows, canvas)
    parts += _components(rows, details or {}, canvas)
    parts += _kernels(document, canvas)
    parts += _layers(document, canvas)
    parts += _errors(document)
    return Group(*parts, source_line(document))


def shown_decisions(document: Document, newest: int, *, no_ops: bool = False) -> list[Document]:
    """Return the decisions of a run document that are listed, the newest last."""
    rows = document.get("decisions") or []
    kept = [row for row in rows if no_ops or row.get("type") != "no_op" or row.get("vetoed_by")]
    return kept[-newest:] if newest else []


def _title(run: Document) -> Text:
    planned = f" of {count(run['planned_steps'])}" if run.get("planned_steps") else ""
    title = Text(words(run.get("run_id")), "bold")
    title.append("  ")
    title.append_text(state(run.get("state")))
    return title.append(f"  step {count(run.get('step'))}{planned}", "not bold")


def _summary(run: Document, document: Document, canvas: Canvas) -> RenderableType:
    base, parameters = run.get("base_parameters"), run.get("parameters")
    grown = f" (+{(parameters - base) / base:.1%})" if base and (parameters or 0) > base else ""
    budget = run.get("parameter_budget")
    now_ms = document.get("now_ms")
    values: list[tuple[str, Text | str]] = [
        ("task", words(run.get("task"))),
        ("train loss", number(run.get("train_loss"))),
        ("validation loss", number(run.get("validation_loss"))),
        ("accuracy", number(_first(run, "validation_accuracy", "train_accuracy"), ".3f")),
        ("parameters", count(parameters) + grown),
        ("budget", count(budget)),
        ("overhead", number(run.get("overhead_ratio"), ".1%")),
        ("step time", f"{number(run.get('step_time_ms'))} ms"),
        ("throughput", f"{count(run.get('throughput'))}/s"),
        ("memory", size(run.get("memory_bytes"))),
        ("cooldown", f"{count(run.get('cooldown_steps'))} steps"),
        ("decisions", count(run.get("decisions"))),
        ("adapted", f"{count(run.get('adaptations'))}, {count(run.get('vetoed'))} vetoed"),
        ("last reward", gain(run.get("last_reward"))),
        ("worth so far", gain(run.get("worth"), "+.4f")),
        ("attached", f"{age(run.get('attached_ms'), now_ms)} ago"),
        ("newest record", f"{age(run.get('time_ms'), now_ms)} ago"),
    ]
    if run.get("dropped_records"):
        values.append(("dropped", Text(f"{count(run['dropped_records'])} records", "red")))
    return summary(values, canvas)


def _first(values: Document, *names: str) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)


def _orders(run: Document) -> list[RenderableType]:
    orders = run.get("orders")
    if not orders:
        return []
    given = [name.replace("_", " ") for name in ("paused", "dry_run") if orders.get(name)]
    if orders.get("protected_layers"):
        given.append(f"protected: {words(orders['protected_layers'])}")
    if not given:
        return []
    by = f" by {words(orders['issued_by'])}" if orders.get("issued_by") else ""
    why = f" ({words(orders['reason'])})" if orders.get("reason") else ""
    return [Text(f"order in force{by}: {', '.join(given)}{why}", "yellow")]


def _curves(document: Document, canvas: Canvas) -> list[RenderableType]:
    series = document.get("series") or {}
    steps = series.get("step") or []
    if not steps:
        return [Text("no measurements yet", "dim"), Text()]
    validation = _filled(series.get("validation_loss") or [])
    curves = [("train loss", series.get("train_loss") or []), ("validation", validation)]
    curves = [(name, values) for name, values in curves if any(each is not None for each in values)]
    label = 10
    width = canvas.width - label - 2 * 9
    lines: list[RenderableType] = []
    for name, values in curves:
        known = [each for each in values if each is not None]
        low, high = min(known), max(known)
        style = "cyan" if name == "validation" else "blue"
        for row, text in enumerate(canvas.chart(values, width, CHART_ROWS)):
            head = name if row == 0 else ""
            tail = number(high) if row == 0 else number(low) if row == CHART_ROWS - 1 else ""
            lines.append(Text.assemble(f"{head:<{label}} ", (text, style), (f" {tail}", "dim")))
    drawn = min(len(steps), width)
    lines.append(Text.assemble(f"{'adapted':<{label}} ", (_markers(document, steps, drawn, canvas), "green")))
    axis = f"{count(steps[0])}{count(steps[-1]):>{max(1, drawn - len(count(steps[0])))}}"
    return [*lines, Text(f"{'step':<{label}} {axis}", "dim"), Text()]


def _filled(values: Sequence[float | None]) -> list[float | None]:
    """Return a curve that is measured now and then without gaps: each value lasts until the next."""
    found: list[float | None] = []
    for each in values:
        found.append(each if each is not None or not found else found[-1])
    return found


def _markers(document: Document, steps: Sequence[int], width: int, canvas: Canvas) -> str:
    """Return a mark below each point of the curve where an adaptation was executed."""
    marks = [" "] * width
    for row in document.get("decisions") or []:
        if row.get("status") == "executed":
            step = row["step"] if row.get("outcome_step") is None else row["outcome_step"]
            place = max(0, bisect_right(steps, step) - 1)
            marks[min(width - 1, place * width // len(steps))] = "^" if canvas.ascii_only else "▲"
    return "".join(marks)


def _decisions(document: Document, rows: Sequence[Document], canvas: Canvas) -> list[RenderableType]:
    every = document.get("decisions") or []
    idle = sum(row.get("type") == "no_op" and not row.get("vetoed_by") for row in every)
    if not rows:
        return [Text(f"no adaptations yet; {plural(idle, 'decision')} to do nothing", "dim"), Text()]
    trends = {each.get("decision_id"): trend(each, document.get("series") or {}) for each in _projections(document)}
    titles = ["step", "action", "conf", "result", "reward", "worth", "gain"]
    if canvas.wide:
        titles = ["step", "decision", *titles[1:3], "policy", "expected", *titles[3:]]
    # Width for reasons is what a terminal of 80 columns does not have.
    titles += ["why"] if canvas.width >= 140 else []
    right = ("step", "conf", "policy", "expected", "reward", "worth", "gain")
    made = table(*titles, right=right, fold=("action", "why"), title="Decisions")
    for row in rows:
        cells = {
            "step": Text(count(row.get("step"))),
            "decision": Text(canvas.id(row.get("decision_id"))),
            "action": Text(action((row.get("proposed") or row) if row.get("vetoed_by") else row)),
            "conf": Text(number(row.get("confidence"), ".2f")),
            "policy": Text(count(row.get("policy_version"))),
            "expected": gain(row.get("predicted_reward"), "+.2f"),
            "result": _result(row),
            "reward": _reward(row, canvas),
            "worth": gain(row.get("worth"), "+.4f"),
            "gain": gain(trends.get(row.get("decision_id")), "+.1%"),
            "why": Text(words(row.get("reason"))),
        }
        made.add_row(*(cells[title] for title in titles))
    notes = []
    if len(every) > len(rows):
        notes.append(f"{plural(len(every) - len(rows), 'more decision')}, {idle:,} of all to do nothing")
    if any(each is not None for each in trends.values()):
        notes.append("gain: how far the loss is below the one projected without the adaptation")
    return [fitted(made), *(Text(each, "dim") for each in notes), Text()]


def _reward(row: Document, canvas: Canvas) -> Text:
    """Return a decision's reward; with dots where later revisions may change it."""
    open_ended = row.get("reward") is not None and not row.get("reward_complete")
    return gain(row.get("reward"), "+.2f").append(("..." if canvas.ascii_only else "…") * open_ended)


def _result(row: Document) -> Text:
    if row.get("vetoed_by"):
        return Text(f"veto: {words(row['vetoed_by'])}", "yellow")
    return state(row.get("status"))


def _projections(document: Document) -> list[Document]:
    return document.get("projections") or []


def trend(projection: Document, series: Document) -> float | None:
    """Return by which share the loss is now below the one projected without the adaptation; None where unknown."""
    steps, losses = projection.get("step") or [], projection.get("loss") or []
    if not steps or not losses or losses[-1] is None or losses[-1] <= 0:
        return None
    validation = series.get("validation_loss") or []
    values = validation if any(each is not None for each in validation) else series.get("train_loss") or []
    known = [
        value
        for step, value in zip(series.get("step") or [], values, strict=False)
        if value is not None and step <= steps[-1]
    ]
    return 1 - known[-1] / losses[-1] if known else None


def _components(rows: Sequence[Document], details: Mapping[str, Document], canvas: Canvas) -> list[RenderableType]:
    rewarded = []
    for row in rows:
        rewards = (details.get(row.get("decision_id") or "") or {}).get("rewards") or []
        if rewards:
            rewarded.append((row, {each["component"]: each for each in rewards[-1].get("waterfall") or []}))
    if not rewarded:
        return []
    names = list(dict.fromkeys(name for _, found in rewarded for name in found))
    titles = {name: COMPONENTS.get(name, words(name)) for name in names}
    made = table(
        "step",
        "action",
        *titles.values(),
        right=("step", *titles.values()),
        fold=("action",),
        title="Rewards by component",
    )
    for row, found in rewarded:
        values = [gain((found.get(name) or {}).get("contribution"), "+.2f") for name in names]
        made.add_row(Text(count(row.get("step"))), Text(action(row)), *values)
    return [fitted(made), Text()]


def _kernels(document: Document, canvas: Canvas) -> list[RenderableType]:
    kernels = document.get("kernels") or []
    alive = [each for each in kernels if each.get("status") in ALIVE]
    ended = Counter(str(each.get("status")) for each in kernels if each.get("status") not in ALIVE)
    over = ", ".join(f"{number:,} {words(name)}" for name, number in sorted(ended.items()))
    if not alive:
        return [Text(f"no kernels alive{f'; {over}' if over else ''}", "dim"), Text()] if kernels else []
    made = table(
        "kernel", "layer", "blueprint", "parameters", "state", "since step",
        right=("parameters", "since step"), fold=("layer", "blueprint"), title="Kernels alive",
    )  # fmt: skip
    for each in alive:
        since = _first(each, "fossilized_step", "active_step", "requested_step")
        made.add_row(
            Text(canvas.id(each.get("kernel_id"))), Text(words(each.get("layer_id"))),
            Text(words(each.get("blueprint"))), Text(count(each.get("parameters"))), state(each.get("status")),
            Text(count(since)),
        )  # fmt: skip
    return [fitted(made), *([Text(f"ended: {over}", "dim")] if over else []), Text()]


def _layers(document: Document, canvas: Canvas) -> list[RenderableType]:
    layers = document.get("layers") or {}
    ids = layers.get("layer_id") or []
    if not ids:
        return []

    def value(name: str, place: int) -> Any:
        values = layers.get(name) or []
        return values[place] if place < len(values) else None

    def seeds(place: int) -> str:
        counts = [(name, value(f"{name}_seeds", place)) for name in ("dormant", "active", "fossilized", "error")]
        return ", ".join(f"{each} {name}" for name, each in counts if each) or "-"

    worst = sorted(
        range(len(ids)), key=lambda place: (not value("problematic", place), _health(value("health", place)))
    )
    titles = ["layer", "health", "growth", "gradient", "seeds"]
    if canvas.wide:
        titles = [
            "layer",
            "health",
            "growth",
            "contribution",
            "gradient",
            "update",
            "learning rate",
            "kernel parameters",
            "seeds",
        ]
    right = tuple(titles[1:-1])
    left = f", {LAYERS} of {len(ids)}" if len(ids) > LAYERS else ""
    made = table(*titles, right=right, fold=("layer",), title=f"Layers by health{left}")
    for place in worst[:LAYERS]:
        style = "red" if value("problematic", place) else ""
        cells = {
            "layer": Text(words(ids[place]), style),
            "health": Text(number(value("health", place), ".2f"), style),
            "growth": Text(number(value("growth_score", place), ".3g")),
            "contribution": Text(number(value("contribution", place), ".3g")),
            "gradient": Text(number(value("gradient_norm", place), ".3g")),
            "update": Text(number(value("update_ratio", place), ".2g")),
            "learning rate": Text(number(value("learning_rate_scale", place), ".3g")),
            "kernel parameters": Text(count(value("kernel_parameters", place))),
            "seeds": Text(seeds(place)),
        }
        made.add_row(*(cells[title] for title in titles))
    return [fitted(made), Text()]


def _health(value: Any) -> float:
    return 2.0 if value is None else float(value)


def _errors(document: Document) -> list[RenderableType]:
    errors = document.get("errors") or []
    if not errors:
        return []
    newest = sorted(errors, key=lambda each: each.get("time_ms") or 0)[-ERRORS:]
    lines: list[RenderableType] = [
        Text(
            f"step {count(each.get('step'))} {words(each.get('layer_id'))}: {words(each.get('error_type'))}: "
            f"{words(each.get('message'))} ({words(each.get('strategy'))}, "
            f"{'works again' if each.get('success') else 'without success'})",
            "" if each.get("success") else "red",
        )
        for each in newest
    ]
    more = f", the newest {ERRORS}" if len(errors) > ERRORS else ""
    return [
        Text(f"{plural(len(errors), 'kernel error')}{more}", "bold"),
        *lines,
        Text(),
    ]
