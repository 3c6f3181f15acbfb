"""The estimators against an independent implementation, and a bootstrap that resamples runs."""

import numpy as np
import pytest
from estimators.bandits import ips, snips

from tamiyo.evaluation.offline.estimators import (
    ESTIMATORS,
    RESAMPLES,
    Target,
    Terms,
    effective_size,
    interval,
    terms,
)
from tests.evaluation.offline.plant import planted_log, under


def mean_of(values: np.ndarray) -> Terms:
    return Terms(values, np.ones_like(values))


@pytest.mark.parametrize("policy", ["heuristic", "never"])
@pytest.mark.parametrize(("name", "theirs"), [("ips", ips), ("snips", snips)])
def test_ips_and_snips_equal_those_of_vw_estimators(name: str, theirs: object, policy: str) -> None:
    decisions = under(planted_log(), policy)
    other = theirs.Estimator()  # type: ignore[attr-defined]
    for each in decisions:
        p_log, p_pred = float(each.behaviour[each.logged]), float(each.targets[0][each.logged])
        other.add_example(p_log=p_log, r=each.reward, p_pred=p_pred)
    reward = np.array([each.reward for each in decisions])
    target = Target(np.array([each.weight(0) for each in decisions]), np.zeros(len(decisions)))
    found = terms(name, reward, np.zeros(len(decisions)), target).value
    assert found != 0
    assert found == pytest.approx(other.get(), abs=1e-9)


def test_the_policy_that_was_logged_earns_the_mean_reward() -> None:
    decisions = under(planted_log(), "logged")
    reward = np.array([each.reward for each in decisions])
    target = Target(np.array([each.weight(0) for each in decisions]), reward)
    assert {terms(name, reward, reward, target).value for name in ESTIMATORS} == {reward.mean()}


def test_each_estimator_has_its_formula() -> None:
    reward, predicted = np.array([1.0, 0.0]), np.array([0.8, 0.2])
    target = Target(weight=np.array([2.0, 0.5]), direct=np.array([0.6, 0.4]))
    found = {name: terms(name, reward, predicted, target).value for name in ESTIMATORS}
    assert found == pytest.approx({
        "ips": (2 * 1 + 0) / 2,
        "snips": (2 * 1 + 0) / (2 + 0.5),
        "dm": (0.6 + 0.4) / 2,
        "dr": (0.6 + 2 * (1 - 0.8) + 0.4 + 0.5 * (0 - 0.2)) / 2,
    })  # fmt: skip


def test_there_is_no_other_estimator() -> None:
    with pytest.raises(ValueError, match="expected one of ips, snips, dm, dr, got 'mrdr'"):
        terms("mrdr", np.zeros(1), np.zeros(1), Target(np.zeros(1), np.zeros(1)))


def test_the_bootstrap_resamples_runs() -> None:
    """Repeating every decision of a run adds no information, so the interval stays; one over decisions shrinks."""
    rng = np.random.default_rng(0)
    run, reward = np.repeat(np.arange(30), 4), rng.normal(0.1, 0.3, 120)
    once = interval(run, mean_of(reward))
    again = interval(np.repeat(run, 25), mean_of(np.repeat(reward, 25)))
    assert (once.value, once.low, once.high) == pytest.approx((again.value, again.low, again.high), abs=1e-12)


def test_the_interval_has_the_width_of_the_runs_scatter() -> None:
    rng = np.random.default_rng(1)
    offsets = rng.normal(0.0, 0.3, 60)
    run = np.repeat(np.arange(60), 20)
    reward = offsets[run] + rng.normal(0.0, 0.1, len(run))
    found = interval(run, mean_of(reward))
    means = reward.reshape(60, 20).mean(axis=1)
    assert found.value == pytest.approx(reward.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * means.std(ddof=1) / np.sqrt(60), rel=0.1)


def test_intervals_cover_the_truth_as_often_as_they_claim() -> None:
    rng = np.random.default_rng(2)
    run = np.repeat(np.arange(40), rng.integers(1, 30, 40))
    covered = 0
    for _ in range(200):
        reward = rng.normal(0.0, 0.2, 40)[run] + rng.exponential(0.1, len(run))
        found = interval(run, mean_of(reward), resamples=499)
        covered += found.low <= 0.1 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_difference_is_paired() -> None:
    rng = np.random.default_rng(3)
    run = np.repeat(np.arange(30), 5)
    common = rng.normal(0.0, 1.0, 30)[run]
    one, other = common + 0.1 + rng.normal(0, 0.01, 150), common + rng.normal(0, 0.01, 150)
    found = interval(run, mean_of(one), mean_of(other))
    assert found.value == pytest.approx(one.mean() - other.mean())
    assert 0.08 < found.low < 0.1 < found.high < 0.12


def test_a_policy_differs_from_itself_by_nothing() -> None:
    run, same = np.arange(20), mean_of(np.linspace(0, 1, 20))
    found = interval(run, same, same)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_the_same_data_give_the_same_interval() -> None:
    run, values = np.repeat(np.arange(20), 3), mean_of(np.random.default_rng(4).normal(size=60))
    assert interval(run, values) == interval(run, values)
    assert interval(run, values) != interval(run, values, resamples=RESAMPLES // 2)


def test_no_weight_at_all_is_no_error() -> None:
    run, none = np.arange(4), Terms(np.zeros(4), np.zeros(4))
    found = interval(run, none)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert effective_size(np.zeros(4)) == 0


@pytest.mark.parametrize(("weights", "expected"), [([1, 1, 1, 1], 4), ([4, 0, 0, 0], 1), ([3, 1], 1.6)])
def test_the_effective_sample_size(weights: list[float], expected: float) -> None:
    assert effective_size(np.array(weights, np.float64)) == pytest.approx(expected)
