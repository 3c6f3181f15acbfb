"""The doubly robust difference of two policies: exact where it is known, and no surer than the runs allow."""

from typing import Any

import numpy as np
import pytest

from tamiyo.models.off_policy import MAX_WEIGHT, OffPolicyCase, policy_difference

EVEN = np.array([0.5, 0.5])
FIRST = np.array([0.9, 0.1])
NOTHING = np.zeros(2)


def case(run: int, action: int, reward: float, **fields: Any) -> OffPolicyCase:
    values: dict[str, Any] = {
        "run_id": f"run-{run}",
        "action": action,
        "reward": reward,
        "confidence": 1.0,
        "propensity": 0.5,
        "candidate": FIRST,
        "incumbent": EVEN,
        "predicted": NOTHING,
    }
    return OffPolicyCase(**{**values, **fields})


def test_without_decisions_or_confidence_nothing_is_known() -> None:
    assert policy_difference([], seed=0).support == 0
    found = policy_difference([case(0, 0, 1.0, confidence=0.0)], seed=0)
    assert (found.mean, found.support, found.runs) == (0.0, 0.0, 0)


def test_equal_policies_differ_by_nothing() -> None:
    found = policy_difference([case(n, n % 2, float(n), candidate=EVEN) for n in range(10)], seed=0)
    assert (found.mean, found.lower, found.support, found.runs) == (0.0, 0.0, pytest.approx(10), 10)


@pytest.mark.parametrize("predicted", [NOTHING, np.array([1.0, 0.0]), np.array([-3.0, 2.0])])
def test_the_mean_is_unbiased_with_any_model_of_the_reward(predicted: np.ndarray) -> None:
    """Each action was taken equally often; the first earns 1, the second 0: 0.9 - 0.5."""
    found = policy_difference([case(n, n % 2, 1.0 - n % 2, predicted=predicted) for n in range(20)], seed=0)
    assert found.mean == pytest.approx(0.4)


def test_a_right_model_leaves_no_variance() -> None:
    found = policy_difference([case(n, 0, 1.0, predicted=np.array([1.0, 0.0])) for n in range(6)], seed=0)
    assert found.mean == found.lower == pytest.approx(0.4)


def test_decisions_of_one_run_count_as_one() -> None:
    rng = np.random.default_rng(2)
    effects = rng.normal(0.0, 0.5, 6)
    clustered = [case(run, 0, float(effect)) for run, effect in enumerate(effects) for _ in range(30)]
    apart = [case(n, 0, each.reward) for n, each in enumerate(clustered)]
    together, separate = (policy_difference(each, seed=0) for each in (clustered, apart))
    assert together.mean == pytest.approx(separate.mean)
    assert together.mean - together.lower > 3 * (separate.mean - separate.lower)


def test_a_large_weight_is_truncated() -> None:
    found = policy_difference([case(0, 0, 1.0, propensity=1e-3)], seed=0)
    assert found.mean == pytest.approx(MAX_WEIGHT - MAX_WEIGHT)  # both ratios are far above the limit
    found = policy_difference([case(0, 0, 1.0, propensity=0.01, incumbent=np.array([0.01, 0.99]))], seed=0)
    assert found.mean == pytest.approx(MAX_WEIGHT - 1)


def test_the_same_seed_gives_the_same_bound() -> None:
    cases = [case(n % 7, n % 2, float(np.sin(n))) for n in range(40)]
    assert policy_difference(cases, seed=3) == policy_difference(cases, seed=3)
