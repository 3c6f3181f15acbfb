"""What `tamiyo evaluate` prints: tables and a verdict, or JSON."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from tamiyo.evaluation.lab.cli.output import right
from tamiyo.evaluation.offline.estimators import ESTIMATORS, Interval
from tamiyo.evaluation.offline.support import Thresholds
from tamiyo.evaluation.offline.verdict import Evaluation, PolicyValue, Status
from tamiyo.schemas.display import narrow, write_json

TITLES = {"ips": "IPS", "snips": "SNIPS", "dm": "direct method", "dr": "doubly robust"}
STYLES = {
    Status.BETTER: "green",
    Status.WORSE: "red",
    Status.NO_DIFFERENCE: "bold",
    Status.TOO_LITTLE_SUPPORT: "yellow",
}

console = Console()


def counts(left_out: Counter[str]) -> str:
    """Return reasons with their counts, the most frequent first."""
    ordered = sorted(left_out.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in ordered if count)


def print_as_json(result: Evaluation, left_out: Counter[str], thresholds: Thresholds) -> None:
    """Print a result as one JSON object."""
    write_json({**asdict(result), "left_out": dict(left_out), "thresholds": asdict(thresholds)})


def print_tables(result: Evaluation, left_out: Counter[str]) -> None:
    """Print estimates, support and the verdict."""
    policies = (result.policy, result.against)
    if result.difference is not None:
        console.print(narrow(_estimates(result, result.difference)))
    console.print(narrow(_support(policies)))
    _print(
        f"{result.decisions:,} decisions of {result.runs:,} runs; mean reward {result.logged_reward:+.4f}"
        + ("" if result.direct_r2 is None else f"; the direct model explains {result.direct_r2:.0%} of its variance")
    )
    if left_out:
        _print(f"left out: {counts(left_out)}")
    for warning in result.warnings:
        _print(warning, "yellow")
    _print(result.verdict, STYLES[result.status])


def _estimates(result: Evaluation, difference: Mapping[str, Interval]) -> Table:
    table = Table(
        "estimator", right(result.policy.name), right(result.against.name), right("difference"),
        title="reward per decision: mean [95 % interval]",
    )  # fmt: skip
    for name in ESTIMATORS:
        values = (each.estimates[name] for each in (result.policy, result.against) if each.estimates is not None)
        table.add_row(TITLES[name], *map(str, values), str(difference[name]))
    return table


def _support(policies: tuple[PolicyValue, PolicyValue]) -> Table:
    columns = ("effective decisions", "effective runs", "covered", "mean weight", "largest", "above limit")
    table = Table("support", *map(right, columns))
    for each in policies:
        of = each.support
        mean: Any = "" if of.mean_weight is None else f"{of.mean_weight.value:.2f}"
        table.add_row(
            each.name, f"{of.effective_sample_size:,.1f}", f"{of.effective_runs:,.1f}", f"{of.covered:.1%}", mean,
            f"{of.largest_weight:,.1f}", f"{of.above_limit:.1%}",
        )  # fmt: skip
    return table


def _print(text: str, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, soft_wrap=True, markup=False)
