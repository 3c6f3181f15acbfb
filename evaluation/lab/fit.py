"""Fit the reward's estimator to what twins show: boosted trees over the evidence, with conformal intervals.

`make evidence ARGS="--full"` makes the traffic, fits the shipped estimator and judges it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import GroupKFold

from tamiyo.streams.stages.rewards.evidence import as_row
from tamiyo.streams.stages.rewards.fitted import GAIN, NEAR, SMALLEST_WIDTH, Fitted, FittedEstimator
from tamiyo.streams.stages.rewards.forest import Forest

COVERAGE = 0.9
FOLDS = 5
SETTINGS: dict[str, dict[str, Any]] = {
    "mean": {
        "max_iter": 300, "learning_rate": 0.04, "max_leaf_nodes": 12, "min_samples_leaf": 10, "max_features": 0.2,
        "l2_regularization": 2.0,
    },
    "error": {"max_iter": 80, "learning_rate": 0.05, "max_leaf_nodes": 6, "min_samples_leaf": 30},
}  # fmt: skip
"""Of scikit-learn's HistGradientBoostingRegressor."""


@dataclass(frozen=True, slots=True)
class TrainingCase:
    """What was known of an adaptation at a moment, and what it came to."""

    task: str
    run: str
    evidence: Mapping[str, float]
    targets: Mapping[str, float]
    """By target, nats; without those that no twin measured."""


Array = npt.NDArray[np.float64]


def to_forest(model: HistGradientBoostingRegressor) -> Forest:
    """Return a fitted model as plain arrays."""
    parts: dict[str, list[Array]] = {name: [] for name in ("feature", "threshold", "missing", "left", "right", "value")}
    roots, start, depth = [], 0, 0
    for (predictor,) in model._predictors:
        nodes = predictor.nodes
        own = np.arange(len(nodes))
        leaf = nodes["is_leaf"].astype(bool)
        depth = max(depth, int(nodes["depth"].max()))
        roots.append(start)
        parts["feature"].append(np.where(leaf, 0, nodes["feature_idx"]))
        parts["threshold"].append(np.where(leaf, 0.0, nodes["num_threshold"]))
        parts["missing"].append(nodes["missing_go_to_left"])
        parts["left"].append(start + np.where(leaf, own, nodes["left"]))
        parts["right"].append(start + np.where(leaf, own, nodes["right"]))
        parts["value"].append(np.where(leaf, nodes["value"], 0.0))
        start += len(nodes)
    joined = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return Forest(
        feature=joined["feature"].astype(np.int32),
        threshold=joined["threshold"].astype(np.float64),
        missing_left=joined["missing"].astype(np.int32),
        left=joined["left"].astype(np.int32),
        right=joined["right"].astype(np.int32),
        value=joined["value"].astype(np.float64),
        roots=np.array(roots, dtype=np.int32),
        base=float(model._baseline_prediction.item()),
        depth=depth,
    )


def fit_target(rows: Array, target: Array, groups: Sequence[str]) -> Fitted:
    """Fit one target.

    Args:
        rows: [cases, evidence], NaN for unknown.
        target: [cases], nats.
        groups: The run of each case: errors are measured on runs that were not fitted to.
    """
    out = np.zeros(len(target))
    for inside, held in GroupKFold(FOLDS).split(rows, groups=groups):
        out[held] = _fit("mean", rows[inside], target[inside]).predict(rows[held])
    errors = np.abs(target - out)
    held_errors = np.zeros(len(target))
    for inside, held in GroupKFold(FOLDS).split(rows, groups=groups):
        held_errors[held] = _fit("error", rows[inside], errors[inside]).predict(rows[held])
    scale = float(np.quantile(errors / np.maximum(held_errors, SMALLEST_WIDTH), COVERAGE))
    return Fitted(to_forest(_fit("mean", rows, target)), to_forest(_fit("error", rows, errors)), scale)


def fit(cases: Sequence[TrainingCase], version: str, about: dict[str, Any]) -> FittedEstimator:
    """Fit an estimator to cases, of which each target uses those that have it.

    Every case weighs alike: with every task weighing alike, the networks drawn at random, of which each is a task of
    its own, outweigh the others, and errors on unseen tasks become no smaller.
    """
    known = {name for case in cases for name, value in case.evidence.items() if not math.isnan(value)}
    names = tuple(name for name in cases[0].evidence if name in known)
    models = {}
    for target in (GAIN, NEAR):
        measured = [case for case in cases if target in case.targets]
        models[target] = fit_target(
            np.array([as_row(case.evidence, names) for case in measured]),
            np.array([case.targets[target] for case in measured]),
            [case.run for case in measured],
        )
    return FittedEstimator(version, names, models, about)


def _fit(kind: str, rows: Array, target: Array) -> HistGradientBoostingRegressor:
    known = np.where(np.isnan(rows).all(axis=0), 0.0, rows)  # the library cannot bin a column of NaN alone
    return HistGradientBoostingRegressor(random_state=0, **SETTINGS[kind]).fit(known, target)
