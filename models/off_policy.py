"""Compares two policies on decisions that other policies made: the doubly robust estimate, with a bootstrap by run.

Dudik, Langford and Li, "Doubly robust policy evaluation and learning" (2011): a model of the reward, corrected by the
importance-weighted error of the model at the actions that were taken. Decisions of one run depend on each other, so the
bootstrap draws whole runs (a cluster bootstrap; Field and Welsh, 2007).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_WEIGHT = 10.0
"""Largest importance weight: a larger one is truncated, which trades variance for bias (Ionides, 2008)."""
RESAMPLES = 500
LEVEL = 0.05  # of the bootstrap distribution, one-sided

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class OffPolicyCase:
    """One logged decision, as two policies see it."""

    run_id: str
    action: int
    """Position of the action that was taken."""
    reward: float
    """Its reward, or the return from it on."""
    confidence: float
    """Of the reward, in [0, 1]: the weight of the decision."""
    propensity: float
    """Probability with which it was taken."""
    candidate: Array
    """[actions]: the candidate's distribution."""
    incumbent: Array
    """[actions]: the incumbent's distribution."""
    predicted: Array
    """[actions]: a model's prediction of the reward; the same for both policies."""


@dataclass(frozen=True, slots=True)
class PolicyDifference:
    """Reward of the candidate minus that of the incumbent, a decision."""

    mean: float
    lower: float
    """Lower bound of the one-sided 95 % bootstrap interval."""
    support: float
    """Effective sample size of the candidate's importance weights."""
    runs: int


def policy_difference(cases: Sequence[OffPolicyCase], *, seed: int) -> PolicyDifference:
    """Estimate how much reward a candidate gains over an incumbent.

    Args:
        cases: Logged decisions; without any, everything is 0.
        seed: Of the bootstrap.

    Example:
        >>> even, sure = np.array([0.5, 0.5]), np.array([0.1, 0.9])
        >>> cases = [
        ...     OffPolicyCase(f"run-{n}", n % 2, float(n % 2), 1.0, 0.5, sure, even, np.zeros(2)) for n in range(40)
        ... ]
        >>> found = policy_difference(cases, seed=0)
        >>> round(found.mean, 2), found.lower > 0, found.runs
        (0.4, True, 40)
    """
    weights = np.array([case.confidence for case in cases])
    if not weights.any():
        return PolicyDifference(0.0, 0.0, 0.0, 0)
    differences = np.array([_difference(case) for case in cases])
    ratios = weights * np.array([_ratio(case.candidate, case) for case in cases])
    index = {run_id: number for number, run_id in enumerate(sorted({case.run_id for case in cases}))}
    member = np.array([index[case.run_id] for case in cases])
    sums = np.bincount(member, weights * differences, len(index))
    totals = np.bincount(member, weights, len(index))
    runs = len(index)
    drawn = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=RESAMPLES)
    divisor = drawn @ totals
    means = (drawn @ sums)[divisor > 0] / divisor[divisor > 0]
    squares = float((ratios**2).sum())
    return PolicyDifference(
        mean=float(sums.sum() / totals.sum()),
        lower=float(np.quantile(means, LEVEL)),
        support=float(ratios.sum()) ** 2 / squares if squares else 0.0,
        runs=runs,
    )


def _difference(case: OffPolicyCase) -> float:
    """Return the doubly robust estimate of one decision's difference."""
    modelled = float((case.candidate - case.incumbent) @ case.predicted)
    error = case.reward - float(case.predicted[case.action])
    return modelled + (_ratio(case.candidate, case) - _ratio(case.incumbent, case)) * error


def _ratio(policy: Array, case: OffPolicyCase) -> float:
    return min(float(policy[case.action]) / case.propensity, MAX_WEIGHT)
