"""Evaluates a policy on a log and compares it with another: estimates, support, and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from tamiyo.evaluation.offline.decisions import LoggedDecision
from tamiyo.evaluation.offline.direct import Regressor, boosted_trees, cross_fitted
from tamiyo.evaluation.offline.estimators import ESTIMATORS, Integers, Interval, Target, Terms, interval, terms
from tamiyo.evaluation.offline.support import Support, Thresholds, run_numbers, support

DECIDING = "dr"
"""The estimator that the verdict follows, fixed in advance: the best of several would find differences by chance."""


class Status(StrEnum):
    """The result of a comparison."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no_difference"
    TOO_LITTLE_SUPPORT = "too_little_support"


@dataclass(frozen=True, slots=True)
class PolicyValue:
    """A policy's reward per decision, by estimator, and how well the log supports it."""

    name: str
    support: Support
    estimates: Mapping[str, Interval] | None
    """None without enough support."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A policy compared with another on the same decisions."""

    status: Status
    verdict: str
    """The status as a sentence, with the numbers it rests on."""
    runs: int
    decisions: int
    logged_reward: float
    """Mean reward of the logged decisions."""
    policy: PolicyValue
    against: PolicyValue
    difference: Mapping[str, Interval] | None
    """Policy less the other, paired, by estimator; None without enough support."""
    direct_r2: float | None
    """Share of the rewards' variance that the direct model explains in held-out runs."""
    warnings: tuple[str, ...] = ()


def evaluate(
    decisions: Sequence[LoggedDecision],
    names: tuple[str, str],
    thresholds: Thresholds | None = None,
    make_model: Callable[[], Regressor] = boosted_trees,
) -> Evaluation:
    """Compare the first of two policies with the second.

    Args:
        decisions: A log with the distributions of both, at least one decision.
        names: Of the two policies.
        thresholds: What the log must provide for a verdict.
        make_model: Returns an unfitted direct model.
    """
    thresholds = thresholds or Thresholds()
    supports = [support(decisions, position, thresholds.weight_limit) for position in (0, 1)]
    run = run_numbers(decisions)
    reward = np.array([each.reward for each in decisions])
    shortfalls = [
        f"{name}: {each}" for name, found in zip(names, supports, strict=True) for each in found.shortfalls(thresholds)
    ]
    values: list[dict[str, Interval]] | list[None] = [None, None]
    difference: dict[str, Interval] | None = None
    direct_r2: float | None = None
    if shortfalls:
        status, verdict = Status.TOO_LITTLE_SUPPORT, f"too little support: {'; '.join(shortfalls)}"
    else:
        model = cross_fitted(decisions, make_model)
        direct_r2 = model.r2
        targets = [
            Target(np.array([each.weight(position) for each in decisions]), model.direct[position])
            for position in (0, 1)
        ]
        first, second = ({name: terms(name, reward, model.predicted, each) for name in ESTIMATORS} for each in targets)
        values = [_intervals(run, first), _intervals(run, second)]
        difference = {name: interval(run, first[name], second[name]) for name in ESTIMATORS}
        status = _status(difference[DECIDING])
        verdict = _sentence(status, names, difference[DECIDING], int(run.max()) + 1)
    return Evaluation(
        status=status,
        verdict=verdict,
        runs=int(run.max()) + 1,
        decisions=len(decisions),
        logged_reward=float(reward.mean()),
        policy=PolicyValue(names[0], supports[0], values[0]),
        against=PolicyValue(names[1], supports[1], values[1]),
        difference=difference,
        direct_r2=direct_r2,
        warnings=tuple(_warnings(names, supports)),
    )


def _intervals(run: Integers, of: Mapping[str, Terms]) -> dict[str, Interval]:
    return {name: interval(run, each) for name, each in of.items()}


def _status(difference: Interval) -> Status:
    if difference.low > 0:
        return Status.BETTER
    return Status.WORSE if difference.high < 0 else Status.NO_DIFFERENCE


def _sentence(status: Status, names: tuple[str, str], difference: Interval, runs: int) -> str:
    policy, other = names
    basis = f"{difference} reward per decision, doubly robust, 95 % interval over {runs} runs"
    match status:
        case Status.BETTER:
            return f"better: {policy} earns more than {other} ({basis})"
        case Status.WORSE:
            return f"worse: {policy} earns less than {other} ({basis})"
        case _:
            return f"no difference shown between {policy} and {other} ({basis})"


def _warnings(names: Sequence[str], supports: Sequence[Support]) -> list[str]:
    """Return a warning for each policy whose mean weight differs from 1, as it would with a biased log."""
    return [
        f"{name}: the mean weight is {found.mean_weight.value:.2f} [{found.mean_weight.low:.2f}, "
        f"{found.mean_weight.high:.2f}] where 1 is expected: some kinds of decision are missing from the log, the "
        "recorded probabilities are not those that were sampled from, or rare actions of large weight did not occur"
        for name, found in zip(names, supports, strict=True)
        if found.mean_weight is not None and not found.mean_weight.low <= 1 <= found.mean_weight.high
    ]
