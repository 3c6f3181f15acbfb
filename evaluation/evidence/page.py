"""Write the evidence into docs/evidence.md, between two marks; the rest of the page is written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tamiyo.evaluation.evidence.figures import GAINS, LEARNERS, POLICY, SUMS
from tamiyo.evaluation.evidence.policy import lines as policy_lines
from tamiyo.evaluation.evidence.reward import BARS
from tamiyo.schemas.files import write_atomically
from tamiyo.streams.stages.rewards.components import WEIGHTS

BEGIN = "<!-- begin: written by make evidence -->"
END = "<!-- end: written by make evidence -->"


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Replace what stands between the marks; raises ValueError if the page has none."""
    text = path.read_text(encoding="utf-8")
    before, marked, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (marked and ended):
        raise ValueError(f"{path.name} lacks the marks {BEGIN!r} and {END!r}")
    write_atomically(path, f"{before}{BEGIN}\n\n{section(found)}\n{END}{after}")


def section(found: Mapping[str, Any]) -> str:
    """Return the sections on the reward and on the policy, in Markdown."""
    return "\n".join([*_lines(found["reward"], found["fitted_to"]), *_policy_lines(found)]) + "\n"


def _policy_lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield "\n## The policy against others\n"
    yield f"![The policy against others](images/{POLICY})\n"
    yield from policy_lines(found)
    yield f"\n![Learning](images/{LEARNERS})"


def summary(found: Mapping[str, Any]) -> str:
    """Return a few lines for the terminal."""
    reward = found["reward"]
    lines = [
        f"estimator {reward['estimator']}: {reward['n']} decisions judged",
        f"reward against true gain: r {_number(reward.get('pearson'))}, coverage {_number(reward.get('coverage'))}; "
        f"the rule before: r {_number(reward['rule_pearson'])}; ceiling {_number(reward['ceiling'])}",
    ]
    lines += [
        f"near effect, {kind}: r {_number(each.get('pearson'))} of {each['n']}"
        for kind, each in reward["near_effect"].items()
    ]
    lines += [
        f"sums, {policy}: coverage {_number(each.get('coverage'))} of {each['n']} runs"
        for policy, each in reward["sums"].items()
    ]
    lines += [
        f"policy less {name}, {task}: {each['difference']:+.3f} nats of {each['n']} pairs"
        for name in ("never", "heuristic")
        for task, each in found["policy"].get(name, {}).items()
    ]
    if "reproduced" in found:
        lines.append(f"made again: {found['reproduced']['same']} of {found['reproduced']['rows']} rows the same")
    return "\n".join(lines)


def _lines(reward: Mapping[str, Any], fitted_to: Mapping[str, Any]) -> Iterator[str]:
    yield f"Estimator `{reward['estimator']}`, fitted to {fitted_to.get('runs', '?')} runs of other seeds. All in nats"
    yield "of log held-out loss; r is Pearson's, its 95 % interval from a bootstrap over decisions.\n"
    yield "| what | where | n | r | 95 % | Spearman | coverage of the 90 % interval | bar |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    rows = [
        (
            "final reward against the true gain, costs included",
            "known tasks, unseen seeds",
            reward["gain"]["known"],
            "",
        ),
        ("", "held-out tasks", reward["gain"]["held_out"], ""),
        ("final reward against worth", "known tasks", reward["worth"]["known"], f"r {BARS['worth_known']}"),
        ("", "held-out tasks", reward["worth"]["held_out"], f"r {BARS['worth_held_out']}"),
        ("near effect (300 steps)", "known tasks", reward["near_effect"]["known"], f"r {BARS['near_known']}"),
        ("", "held-out tasks", reward["near_effect"]["held_out"], f"r {BARS['near_held_out']}"),
        ("final reward against the mean of repeated worths", "known tasks", reward["worth"]["mean_known"], ""),
        ("", "held-out tasks", reward["worth"]["mean_held_out"], ""),
        ("true gain against worth", "known tasks", reward["worth"]["true_gain_known"], ""),
        ("true gain against the mean of repeated worths", "known tasks", reward["worth"]["true_gain_mean_known"], ""),
        ("", "held-out tasks", reward["worth"]["true_gain_mean_held_out"], ""),
        ("true near effect against worth", "known tasks", reward["worth"]["near_effect_known"], ""),
        (
            "shadow twin's result against the effect after 600 steps",
            "known tasks",
            reward["with_twin"]["near_600_known"],
            f"r {BARS['near_with_twin']}",
        ),
        ("", "held-out tasks", reward["with_twin"]["near_600_held_out"], f"r {BARS['near_with_twin']}"),
        ("gain where a shadow twin measured", "known tasks", reward["with_twin"]["gain_known"], ""),
        ("", "held-out tasks", reward["with_twin"]["gain_held_out"], ""),
    ]
    for what, where, each, bar in rows:
        yield _row(what, where, each, bar)
    yield from _ceilings(reward["worth"]["repeated"])
    yield from _predictions(reward["worth"]["predictions"])
    yield ""
    yield f"The rule that the estimator replaced: r {_number(reward['rule_pearson'])} with the true gain. The true"
    yield f"gain repeats at r {_number(reward['ceiling'])} on another order of the data.\n"
    yield f"![Estimated and true](images/{GAINS})\n"
    yield "| task | held out | n | r | mean reward | mean gain |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for task, each in reward["by_task"].items():
        yield (
            f"| {task} | {'yes' if each['held_out'] else ''} | {each['n']} | {_number(each.get('pearson'))} | "
            f"{_signed(each.get('mean_reward'))} | {_signed(each.get('mean_gain'))} |"
        )
    yield from _correlations("The gain as it becomes known, on known tasks", "at the end of", reward["by_span"])
    yield from _correlations("How well each quantity predicts the worth", "quantity", reward["evidence_for_worth"])
    yield "\nHow each component of the reward moves with the true gain (r), by task; empty where it never changed:\n"
    yield f"| task | {' | '.join(name.replace('_', ' ') for name in WEIGHTS)} |"
    yield f"| --- {'| --- ' * len(WEIGHTS)}|"
    for task, own in reward["components"].items():
        yield f"| {task} | {' | '.join(_number(own.get(name)) for name in WEIGHTS)} |"
    yield "\nSum of a run's rewards against what it gained over never adapting, costs included:\n"
    yield "| policy | runs | r | within the interval | mean difference |"
    yield "| --- | --- | --- | --- | --- |"
    for policy, each in reward["sums"].items():
        yield (
            f"| {policy} | {each['n']} | {_number(each.get('pearson'))} | {_number(each.get('coverage'))} | "
            f"{_signed(each['mean_difference'])} |"
        )
    yield f"\n![Sums](images/{SUMS})\n"
    yield "Repeat it: `make evidence` makes a few of these runs again and draws this from the committed rows;"
    yield '`make evidence ARGS="--full"` makes all of them.'


REPEATED = {
    "reordered": "another order of the data",
    "redrawn": "a third order, the policy draws anew",
    "hindsight": "only the run without it, another order",
}
"""How worth was measured again, for the table."""


def _ceilings(repeated: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tables on how well worth repeats."""
    yield "\nHow well worth repeats, and the highest r that an estimate of it can reach (the square root):\n"
    yield "| measured again with | where | n | r | 95 % | ceiling | 95 % |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, shown in REPEATED.items():
        for where, title in (("known", "known tasks"), ("held_out", "held-out tasks")):
            each = repeated[where][name]
            r, bound = each.get("pearson"), each.get("ceiling")
            yield (
                f"| {shown} | {title} | {each['n']} | {_number(r)} | {_range(each.get('pearson_95'))} "
                f"| {_number(bound)} | {_range(each.get('ceiling_95'))} |"
            )
    tasks = {task: own["reordered"] for task, own in repeated["by_task"].items() if own["reordered"]["n"]}
    shown = ", ".join(f"{task} {_number(own.get('pearson')) or '?'} ({own['n']})" for task, own in tasks.items())
    yield f"\nBy task, r on another order of the data, with n: {shown or 'none'}."


def _predictions(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table on what worth could be predicted from."""
    yield "\nThe mean of repeated worths, predicted by ridge regression: known tasks each from the others, held-out"
    yield "tasks from the known ones. No estimator uses these fits.\n"
    yield "| from | r, known tasks | 95 % | r, held-out tasks | 95 % |"
    yield "| --- | --- | --- | --- | --- |"
    for name, each in found.items():
        cells = " | ".join(
            f"{_number(each[where].get('pearson'))} | {_range(each[where].get('pearson_95'))}"
            for where in ("known", "held_out")
        )
        yield f"| {name} | {cells} |"


def _correlations(title: str, first: str, found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield f"\n{title}:\n"
    yield f"| {first} | n | r | Spearman |"
    yield "| --- | --- | --- | --- |"
    for name, each in found.items():
        shown = name.replace("_", " ")
        yield f"| {shown} | {each['n']} | {_number(each.get('pearson'))} | {_number(each.get('spearman'))} |"


def _row(what: str, where: str, each: Mapping[str, Any], bar: str) -> str:
    return (
        f"| {what} | {where} | {each['n']} | {_number(each.get('pearson'))} | {_range(each.get('pearson_95'))} | "
        f"{_number(each.get('spearman'))} | {_number(each.get('coverage'))} | {bar} |"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _range(interval: Sequence[float] | None) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else ""


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"
