"""How well worth repeats, and so how well any reward can agree with it.

Worth is measured once for each decision: in one run and one twin. Some of it is chance. A reward that knew what worth
is expected would agree with one measurement at the square root of the correlation of two of them (Spearman's formula
for attenuation), if both measurements are alike and their errors independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tamiyo.evaluation.lab.judge import agreement, column, is_held_out
from tamiyo.evaluation.lab.traffic import Job, load
from tamiyo.evaluation.lab.truth import truths

Rows = Sequence[Mapping[str, Any]]

REPETITIONS = {"reordered": "reordered_worth", "redrawn": "redrawn_worth", "hindsight": "hindsight_worth"}
"""Columns of the second measurements: another order of the data; a third order and another random stream of the policy;
the same run, less one without the decision on another order of the data."""
MEASUREMENTS = ("true_worth", "reordered_worth", "redrawn_worth")
"""Of which the mean is a cleaner truth."""


def measure(folder: Path, jobs: Iterable[Job]) -> dict[tuple[str, str], dict[str, float]]:
    """Return the measurements of worth in the traffic of `jobs`, by policy and decision id; without unknown ones."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for traffic in load(folder, jobs):
        for truth in truths(traffic):
            measured = {
                "true_worth": truth.worth,
                "reordered_worth": truth.reordered_worth,
                "redrawn_worth": truth.redrawn_worth,
                "hindsight_worth": truth.hindsight_worth,
            }
            known = {name: value for name, value in measured.items() if value is not None}
            found[traffic.job.policy, truth.decision_id] = known
    return found


def merged(decisions: Rows, measured: Mapping[tuple[str, str], Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return the rows with these measurements in their place.

    Two policies may decide on the same graph, with the same decision id, so the policy is part of the key.
    """
    unknown = dict.fromkeys(REPETITIONS.values(), math.nan)
    return [{**unknown, **row, **measured.get((row["policy"], row["decision_id"]), {})} for row in decisions]


def repeatability(decisions: Rows) -> dict[str, Any]:
    """Return how well worth repeats on known tasks, on held-out ones and by task, with the ceiling that follows."""
    tasks = sorted({row["task"] for row in decisions})
    return {
        "known": _repetitions([row for row in decisions if not is_held_out(row["task"])]),
        "held_out": _repetitions([row for row in decisions if is_held_out(row["task"])]),
        "by_task": {task: _repetitions([row for row in decisions if row["task"] == task]) for task in tasks},
    }


def against_mean(decisions: Rows, estimated: str) -> dict[str, Any]:
    """Return the agreement of a gain, less its costs, with the mean of all measurements of a worth.

    Decisions whose worth was measured once only do not count.
    """
    measured = np.array([column(decisions, name) for name in MEASUREMENTS])
    often = np.isfinite(measured).sum(axis=0) > 1
    mean = np.full(len(decisions), math.nan)
    mean[often] = np.nanmean(measured[:, often], axis=0)
    return agreement(column(decisions, estimated) - column(decisions, "cost"), mean)


def _repetitions(decisions: Rows) -> dict[str, Any]:
    first = column(decisions, "true_worth")
    return {name: with_ceiling(first, column(decisions, again)) for name, again in REPETITIONS.items()}


def with_ceiling(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return the agreement of two measurements and the ceiling that follows, both with 95 % intervals."""
    found = agreement(first, second)
    if "pearson" in found:
        found["ceiling"] = _root(found["pearson"])
        found["ceiling_95"] = [_root(bound) for bound in found["pearson_95"]]
    return found


def _root(r: float) -> float:
    """Return the square root of a correlation; below 0 nothing repeats, and the ceiling is 0."""
    return math.sqrt(max(r, 0.0))
