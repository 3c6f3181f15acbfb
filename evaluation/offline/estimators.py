"""Off-policy estimators of a policy's mean reward per decision, with bootstrap intervals over runs.

With w the target policy's probability of the logged action over the logged policy's, r the reward, q the direct model's
expected reward of an action, and Q its mean under the target policy:

- IPS, inverse propensity scoring: mean of w r (Horvitz and Thompson, 1952). Unbiased; its variance grows with w.
- SNIPS, self-normalised: sum of w r / sum of w (Swaminathan and Joachims, 2015). A little bias, less variance.
- DM, direct method: mean of Q. As wrong as the model.
- DR, doubly robust: mean of Q + w (r - q) (Dudík, Langford and Li, 2011). Right if either propensities or model are.

Each is a ratio of two sums over decisions. Decisions of one run depend on each other, so the bootstrap resamples whole
runs (Field and Welsh, "Bootstrapping clustered data", 2007).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

ESTIMATORS = ("ips", "snips", "dm", "dr")
RESAMPLES = 9_999
CONFIDENCE = 0.95
BATCH_ELEMENTS = 4_000_000  # run sums drawn at once: 32 MB for each column

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Target:
    """A policy on n logged decisions."""

    weight: Array
    """[n]: its probability of the logged action / the logged policy's."""
    direct: Array
    """[n]: the direct model's expected reward under its distribution."""


@dataclass(frozen=True, slots=True)
class Terms:
    """A value as a ratio: sum of `numerator` / sum of `denominator`, each [n]."""

    numerator: Array
    denominator: Array

    @property
    def value(self) -> float:
        """The ratio; 0 where the denominator is 0."""
        return float(_ratio(self.numerator.sum(), self.denominator.sum()))


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def terms(estimator: str, reward: Array, predicted: Array, target: Target) -> Terms:
    """Return the terms of an estimator.

    Args:
        estimator: One of `ESTIMATORS`.
        reward: Of each logged action, [n].
        predicted: The direct model's expected reward of each logged action, [n].
        target: The policy to evaluate.

    Example:
        >>> reward, predicted = np.array([1.0, 0.0]), np.array([0.8, 0.2])
        >>> target = Target(weight=np.array([2.0, 0.5]), direct=np.array([0.6, 0.4]))
        >>> [round(terms(name, reward, predicted, target).value, 3) for name in ESTIMATORS]
        [1.0, 0.8, 0.5, 0.65]
    """
    ones = np.ones_like(reward)
    match estimator:
        case "ips":
            return Terms(target.weight * reward, ones)
        case "snips":
            return Terms(target.weight * reward, target.weight)
        case "dm":
            return Terms(target.direct, ones)
        case "dr":
            return Terms(target.direct + target.weight * (reward - predicted), ones)
        case _:
            raise ValueError(f"expected one of {', '.join(ESTIMATORS)}, got {estimator!r}")


def interval(run: Integers, value: Terms, minus: Terms | None = None, *, resamples: int = RESAMPLES) -> Interval:
    """Return a value, or the paired difference of two, with its interval; the same data give the same interval.

    BCa bootstrap (Efron, 1987) over runs; percentiles where BCa is undefined, as for a difference that is always 0.

    Args:
        run: The run of each decision, [n], numbered from 0; at least two runs.
        value: Terms of a policy.
        minus: Terms of the policy to subtract, on the same decisions.
        resamples: Resamples of the runs.
    """
    columns = [part for each in (value, minus) if each is not None for part in (each.numerator, each.denominator)]
    sums = [run_sums(run, column) for column in columns]

    def statistic(*resampled: Array, axis: int = -1) -> Array:
        totals = [each.sum(axis=axis) for each in resampled]
        found = _ratio(totals[0], totals[1])
        return found if minus is None else found - _ratio(totals[2], totals[3])

    options: dict[str, Any] = {
        "paired": True, "vectorized": True, "n_resamples": resamples, "confidence_level": CONFIDENCE,
        "batch": max(1, BATCH_ELEMENTS // len(sums[0])),
    }  # fmt: skip
    low, high = _bootstrap(sums, statistic, method="BCa", **options)
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = _bootstrap(sums, statistic, method="percentile", **options)
    return Interval(float(statistic(*sums)), low, high)


def run_sums(run: Integers, column: Array) -> Array:
    """Return the sum over the decisions of each run, [runs]."""
    return np.asarray(np.bincount(run, weights=column), np.float64)


def effective_size(weight: Array) -> float:
    """Return Kish's effective sample size: (sum of w)^2 / sum of w^2; 0 without weight.

    Example:
        >>> effective_size(np.array([1.0, 1.0, 1.0, 1.0])), effective_size(np.array([4.0, 0.0, 0.0, 0.0]))
        (4.0, 1.0)
    """
    return float(_ratio(weight.sum() ** 2, (weight**2).sum()))


def _bootstrap(sums: list[Array], statistic: Callable[..., Array], **options: Any) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(sums, statistic, rng=rng, **options).confidence_interval
    return float(found.low), float(found.high)


def _ratio(numerator: Array, denominator: Array) -> Array:
    zero = np.zeros(np.broadcast(numerator, denominator).shape)
    return np.divide(numerator, denominator, out=zero, where=np.asarray(denominator) != 0)
