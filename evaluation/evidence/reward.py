"""The evidence on the reward: raw rows, the figures drawn from them, and the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tamiyo.evaluation.common.parquet import write_table
from tamiyo.evaluation.evidence.worth import against_mean, predictions, repeatability
from tamiyo.evaluation.lab.judge import (
    Judged,
    JudgedRun,
    agreement,
    column,
    is_held_out,
    judge,
    judge_run,
    never_objective,
    rows,
)
from tamiyo.evaluation.lab.suites import ADVERSARIAL
from tamiyo.evaluation.lab.traffic import Job, load
from tamiyo.streams.stages.rewards.components import WEIGHTS
from tamiyo.streams.stages.rewards.fitted import FittedEstimator
from tamiyo.streams.stages.rewards.spans import SPAN_WEIGHTS

Rows = Sequence[Mapping[str, Any]]

DECISIONS = "reward_decisions.parquet"
RUNS = "reward_runs.parquet"

BARS = {
    "near_known": 0.85,
    "near_held_out": 0.6,
    "near_with_twin": 0.85,
    "worth_known": 0.7,
    "worth_held_out": 0.5,
    "spearman": 0.75,
}
"""What the project aims at."""


def measure(folder: Path, jobs: Iterable[Job], estimator: FittedEstimator) -> tuple[list[Any], list[Any]]:
    """Return the rows of decisions and of runs for the traffic of `jobs` in a folder."""
    decisions: list[Judged] = []
    runs: list[JudgedRun] = []
    never: dict[tuple[str, int], float] = {}
    for traffic in load(folder, jobs):
        key = (traffic.job.task, traffic.job.seed)
        known = never_objective(traffic)
        if known is not None:
            never[key] = known
        if traffic.job.alone:  # without twins, only what came too late to count would be known
            decisions += judge(traffic, estimator)
        if traffic.job.policy != "never" and key in never:
            runs.append(judge_run(traffic, estimator, never[key]))
    return rows(decisions), rows(runs)


def save(table: Rows, path: Path) -> None:
    """Write rows as Parquet."""
    write_table(pa.Table.from_pylist([dict(row) for row in table]), path)


def read(path: Path) -> list[dict[str, Any]]:
    """Read rows that `save` wrote."""
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def report(decisions: Rows, runs: Rows, estimator: str) -> dict[str, Any]:
    """Return the whole report on the reward, as plain values."""
    known = [row for row in decisions if not is_held_out(row["task"])]
    held_out = [row for row in decisions if is_held_out(row["task"])]
    tasks = sorted({row["task"] for row in decisions})
    whole = _gain(decisions)
    return {
        "estimator": estimator,
        **whole,
        "ceiling": ceiling(decisions),
        "rule_pearson": agreement(column(decisions, "rule_total"), column(decisions, "true_gain")).get("pearson"),
        "by_task": {
            task: {
                **(found := _gain([row for row in decisions if row["task"] == task])),
                "mean_reward": found.get("mean_estimated"),
                "mean_gain": found.get("mean_true"),
                "held_out": is_held_out(task),
            }
            for task in tasks
        },
        "gain": {"known": _gain(known), "held_out": _gain(held_out)},
        "near_effect": {
            "known": _pair(known, "near", "true_near", "near_half_width"),
            "held_out": _pair(held_out, "near", "true_near", "near_half_width"),
        },
        "worth": {
            "known": _pair(known, "gain", "true_worth", "half_width", less="cost"),
            "held_out": _pair(held_out, "gain", "true_worth", "half_width", less="cost"),
            "true_gain_known": _pair(known, "true_gain", "true_worth", less="cost"),
            "near_effect_known": _pair(known, "true_near", "true_worth", less="cost"),
            "mean_known": against_mean(known, "gain"),
            "mean_held_out": against_mean(held_out, "gain"),
            "true_gain_mean_known": against_mean(known, "true_gain"),
            "true_gain_mean_held_out": against_mean(held_out, "true_gain"),
            "repeated": repeatability(decisions),
            "predictions": predictions(decisions),
        },
        "by_span": by_span(known),
        "evidence_for_worth": {
            name: _pair(decisions, name, "true_worth")
            for name in ("true_near_100", "true_near", "true_near_600", "true_near_equal_compute", "true_gain", "gain")
        },
        "with_twin": {
            "near_600_known": _pair(known, "near_with_twin", "true_near_600"),
            "near_600_held_out": _pair(held_out, "near_with_twin", "true_near_600"),
            "gain_known": _pair(known, "gain_with_twin", "true_gain"),
            "gain_held_out": _pair(held_out, "gain_with_twin", "true_gain"),
        },
        "components": components(decisions),
        "sums": sums(runs),
    }


def by_span(decisions: Rows) -> dict[str, Any]:
    """Return how well the gain was known at the end of each span."""
    found = {}
    for index, name in enumerate(SPAN_WEIGHTS):
        seen = [row for row in decisions if len(row["gains"]) > index]
        estimated = np.array([row["gains"][index] for row in seen])
        found[name] = agreement(estimated, column(seen, "true_gain"))
    return found


def components(decisions: Rows) -> dict[str, dict[str, float]]:
    """Return, by task, the correlation of each component with the true gain; without those that are constant."""
    found: dict[str, dict[str, float]] = {}
    for task in sorted({row["task"] for row in decisions}):
        own = [row for row in decisions if row["task"] == task]
        each = {}
        for name in WEIGHTS:
            values = np.array([row["components"][name] for row in own])
            r = agreement(values, column(own, "true_gain")).get("pearson")
            if r is not None:
                each[name] = r
        found[task] = each
    return found


def ceiling(decisions: Rows) -> float | None:
    """Return the correlation of the true gain with itself on another order of the data."""
    found: float | None = agreement(column(decisions, "true_gain"), column(decisions, "repeated_gain")).get("pearson")
    return found


def sums(runs: Rows) -> dict[str, Any]:
    """Return, by policy, how the sum of a run's worths agrees with what it gained over never adapting."""
    found: dict[str, Any] = {}
    for policy in ("random:0.2", "heuristic", *ADVERSARIAL):
        own = [row for row in runs if row["policy"] == policy and row["adaptations"]]
        if not own:
            continue
        difference = column(own, "sum_of_worths") - column(own, "true_gain")
        tasks = {row["task"] for row in own}
        found[policy] = {
            **agreement(column(own, "sum_of_worths"), column(own, "true_gain"), column(own, "half_width")),
            "mean_difference": float(difference.mean()),
            "within_by_task": {
                task: float(
                    np.mean([
                        abs(row["sum_of_worths"] - row["true_gain"]) <= row["half_width"]
                        for row in own
                        if row["task"] == task
                    ])
                )
                for task in sorted(tasks)
            },
        }  # fmt: skip
    return found


def _gain(table: Rows) -> dict[str, Any]:
    return _pair(table, "gain", "true_gain", "half_width", less="cost")


def _pair(
    table: Rows, estimated: str, true: str, width: str | None = None, *, less: str | None = None
) -> dict[str, Any]:
    """Compare two columns; `less` is subtracted from both where it is a gain, so that costs are included."""
    x, y = column(table, estimated), column(table, true)
    if less is not None:
        cost = column(table, less)
        x = x - cost
        y = y if true == "true_worth" else y - cost
    return agreement(x, y, None if width is None else column(table, width))
