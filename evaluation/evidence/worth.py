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
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tamiyo.evaluation.lab.judge import agreement, column, is_held_out
from tamiyo.evaluation.lab.traffic import Job, load
from tamiyo.evaluation.lab.truth import truths

Rows = Sequence[Mapping[str, Any]]
Array = npt.NDArray[np.float64]

REPETITIONS = {"reordered": "reordered_worth", "redrawn": "redrawn_worth", "hindsight": "hindsight_worth"}
"""Columns of the second measurements: another order of the data; a third order and another random stream of the policy;
the same run, less one without the decision on another order of the data."""
PREDICTORS = {
    "true gain": ("true",),
    "true gain, later true gains and their number, step": ("true", "true_later", "later", "step"),
    "estimated gain": ("estimated",),
    "estimated gain, near effect and interval, later estimated gains and their number, step": (
        "estimated", "near", "half_width", "estimated_later", "later", "step",
    ),
}  # fmt: skip
"""Sets of quantities to predict worth from."""
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
    return agreement(column(decisions, estimated) - column(decisions, "cost"), mean_worth(decisions))


def mean_worth(decisions: Rows) -> Array:
    """Return the mean of all measurements of each worth; NaN where there is only one."""
    measured = np.array([column(decisions, name) for name in MEASUREMENTS])
    often = np.isfinite(measured).sum(axis=0) > 1
    mean = np.full(len(decisions), math.nan)
    mean[often] = np.nanmean(measured[:, often], axis=0)
    return mean


def predictions(decisions: Rows) -> dict[str, dict[str, Any]]:
    """Return how well ridge regressions on several sets of quantities predict the mean worth.

    Each known task is predicted from the other known ones, and held-out tasks from all known ones. No estimator is made
    of this: it shows what is lost where.
    """
    known = np.array([not is_held_out(row["task"]) for row in decisions])
    tasks = np.array([row["task"] for row in decisions])
    worth = mean_worth(decisions)
    inputs = _inputs(decisions)
    found = {}
    for name, columns in PREDICTORS.items():
        x = np.nan_to_num(np.array([inputs[each] for each in columns]).T)
        own, other = known & np.isfinite(worth), ~known & np.isfinite(worth)
        if len(set(tasks[own])) < 2:
            continue
        out = cross_val_predict(_ridge(), x[own], worth[own], groups=tasks[own], cv=LeaveOneGroupOut())
        found[name] = {"known": agreement(out, worth[own]), "held_out": {"n": int(other.sum())}}
        if other.any():
            found[name]["held_out"] = agreement(_ridge().fit(x[own], worth[own]).predict(x[other]), worth[other])
    return found


def _ridge() -> Any:
    return make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 3, 10)))


def _inputs(decisions: Rows) -> dict[str, Array]:
    """Return columns to predict worth from: gains less costs, what came after in the same run, and when it was."""
    cost = column(decisions, "cost")
    step = column(decisions, "step")
    net = {"true": column(decisions, "true_gain") - cost, "estimated": column(decisions, "gain") - cost}
    runs = np.array([f"{row['task']} {row['policy']} {row['seed']}" for row in decisions])
    after = (runs[:, None] == runs[None, :]) & (step[:, None] < step[None, :])
    return {
        **net,
        **{f"{name}_later": after @ np.nan_to_num(values) for name, values in net.items()},
        "later": after.sum(axis=1).astype(float),
        "step": step,
        "near": column(decisions, "near"),
        "half_width": column(decisions, "half_width"),
    }


def _repetitions(decisions: Rows) -> dict[str, Any]:
    first = column(decisions, "true_worth")
    return {name: with_ceiling(first, column(decisions, again)) for name, again in REPETITIONS.items()}


def with_ceiling(first: Array, second: Array) -> dict[str, Any]:
    """Return the agreement of two measurements and the ceiling that follows, both with 95 % intervals."""
    found = agreement(first, second)
    if "pearson" in found:
        found["ceiling"] = _root(found["pearson"])
        found["ceiling_95"] = [_root(bound) for bound in found["pearson_95"]]
    return found


def _root(r: float) -> float:
    """Return the square root of a correlation; below 0 nothing repeats, and the ceiling is 0."""
    return math.sqrt(max(r, 0.0))
