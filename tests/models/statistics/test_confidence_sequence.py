"""The empirical-Bernstein sequence: it fails no more often than promised, at any time, and finds real differences."""

import numpy as np
import pytest

from tamiyo.models.confidence_sequence import EmpiricalBernstein


def test_without_observations_the_bounds_are_the_range() -> None:
    mean = EmpiricalBernstein(0.05, low=-2.0, high=3.0)
    assert (mean.lower, mean.upper, mean.mean, mean.count) == (-2.0, 3.0, 0.5, 0)


def test_the_first_bounds_equal_the_formula() -> None:
    """One observation of 1 in [0, 1]: the bet is at its limit of 1/2, and the plug-in mean is the prior's 1/2."""
    mean = EmpiricalBernstein(0.05)
    mean.add(1.0)
    spent = np.log(1 / 0.05) + 0.25 * (-np.log(0.5) - 0.5)
    assert mean.mean == 1.0
    assert mean.lower == max(0.0, 1.0 - spent / 0.5)
    for _ in range(200):
        mean.add(1.0)
    assert 0.9 < mean.lower < 1.0 == mean.upper


def test_an_observation_outside_the_range_counts_as_its_bound() -> None:
    inside, outside = EmpiricalBernstein(0.05), EmpiricalBernstein(0.05)
    for _ in range(5):
        inside.add(1.0)
        outside.add(7.0)
    assert (inside.lower, inside.upper) == (outside.lower, outside.upper)


@pytest.mark.parametrize("draw", ["uniform", "rare"])
def test_the_bounds_rarely_exclude_the_mean_at_any_time(draw: str) -> None:
    """With alpha = 0.1 on each side, at most 10 % of 300 sequences may ever exclude the mean on one side."""
    rng = np.random.default_rng(5)
    values = rng.uniform(size=(300, 400)) if draw == "uniform" else (rng.uniform(size=(300, 400)) < 0.05).astype(float)
    true = 0.5 if draw == "uniform" else 0.05
    low = high = 0
    for sequence in values:
        mean = EmpiricalBernstein(0.1)
        excluded = [False, False]
        for value in sequence:
            mean.add(float(value))
            excluded[0] |= mean.lower > true
            excluded[1] |= mean.upper < true
        low += excluded[0]
        high += excluded[1]
    assert low <= 30
    assert high <= 30


def test_the_bounds_narrow_with_the_variance() -> None:
    rng = np.random.default_rng(1)
    calm, noisy = EmpiricalBernstein(0.05), EmpiricalBernstein(0.05)
    for value in rng.uniform(-1, 1, 1000):
        calm.add(0.5 + 0.05 * value)
        noisy.add(0.5 + 0.5 * value)
    assert calm.upper - calm.lower < 0.5 * (noisy.upper - noisy.lower)
    assert calm.lower < 0.5 < calm.upper
