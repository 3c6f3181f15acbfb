"""One decision in full: what it chose from, who vetoed it, its outcome, and its reward."""

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
    size,
    source_line,
    state,
    summary,
    table,
    words,
)
from tamiyo.streams.watch.terminal.run import COMPONENTS

Document = dict[str, Any]
ACTIONS = 12  # actions that are listed, the most probable first


def render_decision(document: Document, canvas: Canvas) -> RenderableType:
    """Return a decision as text.

    Args:
        document: a decision document.
        canvas: the terminal.
    """
    decision = document.get("decision") or {}
    title = Text(f"{words(document.get('run_id'))}  step {count(decision.get('step'))}  ", "bold")
    title.append(action(decision))
    title.append("  ").append_text(state(decision.get("status")))
    parts: list[RenderableType] = [title, _summary(decision, document, canvas)]
    parts += _sentences(decision)
    if document.get("details_kept") is False:
        parts.append(Text("older than what is kept in full: without its probabilities and earlier rewards", "dim"))
    parts += [Text(), *_actions(document, canvas), *_outcome(document, canvas), *_reward(document, canvas)]
    return Group(*parts, source_line(document))


def _summary(decision: Document, document: Document, canvas: Canvas) -> RenderableType:
    half_width = number(decision.get("uncertainty"), ".2f")
    return summary(
        [
            ("decision", words(decision.get("decision_id"))),
            ("decided", f"{age(decision.get('time_ms'), document.get('now_ms'))} ago"),
            ("proposed", action(decision.get("proposed") or decision)),
            ("made by", f"{words(decision.get('method'))}, policy {count(decision.get('policy_version'))}"),
            ("confidence", number(decision.get("confidence"), ".2f")),
            ("expected reward", gain(decision.get("predicted_reward"), "+.2f").append(f" +- {half_width}", "not bold")),
            ("urgency", number(decision.get("urgency"), ".2f")),
            ("value", number(decision.get("value"), "+.3f")),
            ("entropy", f"{number(decision.get('entropy'), '.3f')} nats"),
            ("temperature", number(decision.get("temperature"), ".3g")),
            ("kernel", words(decision.get("kernel_id"))),
            ("graph", words(decision.get("graph_id"))),
        ],
        canvas,
    )


def _sentences(decision: Document) -> list[RenderableType]:
    lines: list[RenderableType] = []
    if decision.get("explanation"):
        lines.append(Text(words(decision["explanation"])))
    vetoes = decision.get("vetoes") or [{"by": name, "reason": ""} for name in decision.get("vetoed_by") or ()]
    for veto in vetoes:
        lines.append(Text(f"veto by {words(veto.get('by'))}: {words(veto.get('reason'))}", "yellow"))
    if decision.get("dry_run"):
        lines.append(Text("dry run: recorded, not executed", "yellow"))
    if decision.get("orders"):
        lines.append(Text(f"orders in force: {words(list(decision['orders']))}", "dim"))
    return lines


def _actions(document: Document, canvas: Canvas) -> list[RenderableType]:
    actions = document.get("actions") or []
    if not actions:
        return []
    legal = sum(bool(each.get("legal")) for each in actions)
    illegal = len(actions) - legal + (document.get("actions_left_out") or 0)
    shown = [each for place, each in enumerate(actions) if place < ACTIONS or each.get("chosen")]
    highest = max((each.get("probability") or 0.0 for each in actions), default=0.0) or 1.0
    width = 40 if canvas.wide else 20
    made = table("", "action", "probability", "", right=("probability",), fold=("action",), title="Actions")
    for each in shown:
        probability = each.get("probability") or 0.0
        style = "bold green" if each.get("chosen") else "" if each.get("legal") else "dim"
        made.add_row(
            Text(">" if each.get("chosen") else "", style),
            Text(action(each) + ("" if each.get("legal") else f" (masked: {words(each.get('reason'))})"), style),
            Text(f"{probability:.4f}", style),
            Text(canvas.bar(probability / highest, width), "green" if each.get("chosen") else "blue"),
        )
    return [fitted(made), Text(f"{legal:,} legal actions, {illegal:,} masked or left out", "dim"), Text()]


def _outcome(document: Document, canvas: Canvas) -> list[RenderableType]:
    parts: list[RenderableType] = []
    kernel = document.get("kernel")
    if kernel:
        why = f": {words(kernel['reason'])}" if kernel.get("reason") else ""
        made = (
            f", {count(kernel.get('parameters'))} parameters, {size(kernel.get('size_bytes'))}, "
            f"built in {number(kernel.get('compile_time_ms'), '.1f')} ms"
        )
        parts.append(Text.assemble("kernel ", state(kernel.get("status")), why or made))
    outcome = document.get("outcome")
    if not outcome:
        return [*parts, Text()] if parts else []
    why = f": {words(outcome['reason'])}" if outcome.get("reason") else ""
    pause = f", training paused for {number(outcome.get('duration_ms'), '.1f')} ms"
    parts.append(
        Text.assemble("outcome ", state(outcome.get("status")), f" at step {count(outcome.get('step'))}{pause}{why}")
    )
    before, after = outcome.get("before") or {}, outcome.get("after") or {}
    names = list(dict.fromkeys([*before, *after]))
    if names:
        compared = table("measured", "before", "after", right=("before", "after"), title="")
        for name in names:
            compared.add_row(Text(words(name)), Text(number(before.get(name))), Text(number(after.get(name))))
        parts.append(fitted(compared))
    return [*parts, Text()]


def _reward(document: Document, canvas: Canvas) -> list[RenderableType]:
    rewards: Sequence[Document] = document.get("rewards") or []
    if not rewards:
        return []
    newest = rewards[-1]
    head = Text.assemble(("Reward ", "bold"), gain(newest.get("total")))
    head.append(
        f" (revision {count(newest.get('revision'))}, {'complete' if newest.get('complete') else 'not complete'})"
    )
    parts: list[RenderableType] = [head]
    if newest.get("explanation"):
        parts.append(Text(words(newest["explanation"])))
    half_width = newest.get("worth_half_width")
    parts.append(
        summary(
            [
                ("confidence", number(newest.get("confidence"), ".2f")),
                ("expected", gain(newest.get("predicted_reward"), "+.3f")),
                ("loss reduced", number(newest.get("improvement"), "+.2%")),
                (
                    "worth",
                    gain(newest.get("worth"), "+.4f").append("" if half_width is None else f" +- {half_width:.4f}"),
                ),
                ("estimator", words(newest.get("estimator"))),
            ],
            canvas,
        )
    )
    return [*parts, *_waterfall(newest, canvas), *_spans(newest), *_revisions(rewards), Text()]


def _waterfall(reward: Document, canvas: Canvas) -> list[RenderableType]:
    rows: Sequence[Document] = reward.get("waterfall") or []
    if not rows:
        return []
    titles = ("component", "value", "weight", "contribution")
    made = table(*titles, "", right=titles[1:], title="By component")
    width = 41 if canvas.wide else 21
    highest = max((abs(each.get("contribution") or 0.0) for each in rows), default=0.0) or 1.0
    for each in rows:
        contribution = each.get("contribution")
        made.add_row(
            Text(COMPONENTS.get(each.get("component") or "", words(each.get("component")))),
            Text(number(each.get("value"), "+.3f")),
            Text(number(each.get("weight"), "+.1f")),
            gain(contribution),
            canvas.signed_bar((contribution or 0.0) / highest, width),
        )
    made.add_row(Text("sum", "bold"), "", "", gain(reward.get("sum")), Text("reward = tanh(sum)", "dim"))
    return [fitted(made)]


def _spans(reward: Document) -> list[RenderableType]:
    spans: Sequence[Mapping[str, Any]] = reward.get("spans") or []
    if not spans:
        return []
    made = table("span", "from", "to", "windows", "weight", "sum", right=("from", "to", "windows", "weight", "sum"))
    made.title, made.title_justify = Text("By time span", "bold"), "left"
    for each in spans:
        seen = bool(each.get("seen"))
        made.add_row(
            Text(words(each.get("name")).replace("_", " "), "" if seen else "dim"),
            Text(count(each.get("start"))),
            Text("open" if each.get("end") is None else count(each["end"])),
            Text(count(each.get("windows"))),
            Text(number(each.get("weight"), ".2f")),
            gain(each.get("total")) if seen else Text("not measured", "dim"),
        )
    return [fitted(made)]


def _revisions(rewards: Sequence[Document]) -> list[RenderableType]:
    if len(rewards) < 2:
        return []
    earlier = ", ".join(f"{number(each.get('total'), '+.3f')}" for each in rewards[:-1])
    return [Text(f"earlier revisions: {earlier}", "dim")]
