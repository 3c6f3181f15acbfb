"""Every formula against values computed by hand from the specification."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.streams.stages.rewards import components as rc


def test_weights_are_the_specifications() -> None:
    assert dict(rc.WEIGHTS) == {
        "accuracy_improvement": 1.0,
        "speed_improvement": 0.6,
        "memory_efficiency": 0.4,
        "stability_improvement": 0.8,
        "adaptation_cost": -0.3,
        "risk_penalty": -0.5,
    }


@pytest.mark.parametrize(
    ("without", "with_", "value"),
    [(1.0, 0.8, 1.0), (0.8, 1.0, -1.0), (1.0, 1.0, 0.0), (0.905, 0.535, 2.35574), (10.0, 0.1, 3.0), (0.1, 10.0, -3.0)],
)
def test_accuracy(without: float, with_: float, value: float) -> None:
    assert rc.accuracy_improvement(math.log(without / with_)) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [
        (4.0, 2.0, 0.5),  # half the latency
        (2.0, 0.8, 0.6 + 0.1),  # below 1 ms
        (2.0, 0.4, 0.8 + 0.2),  # below half a millisecond
        (2.0, 2.1, -0.05),  # 5 % slower
        (2.0, 2.2, -0.1),  # 10 % slower
        (2.0, 3.0, -0.5 - 0.5),  # 50 % slower
        (0.2, 0.3, -0.5 + 0.2 - 0.5),  # slower, and still fast
        (0.0, 1.0, 0.0),  # nothing to compare with
    ],
)
def test_speed_as_specified(before: float, after: float, value: float) -> None:
    assert rc.speed_improvement(before, after) == pytest.approx(value)


def test_speed_relative_to_no_change() -> None:
    assert rc.relative_speed(0.2, 0.2) == 0  # no bonus for a latency that was low anyway
    assert rc.relative_speed(2.0, 0.8) == pytest.approx(0.7)
    assert rc.relative_speed(2.0, 3.0, noise=0.5) == 0  # within the noise
    assert rc.relative_speed(2.0, 3.0, allowance_ms=1.5) == 0  # within the allowance
    assert rc.relative_speed(100.0, 121.5, allowance_ms=1.5) == pytest.approx(-0.2 - 0.5)
    assert rc.relative_speed(1.0, 50.0) == -1.0
    assert rc.relative_speed(0.0, 50.0) == 0


@pytest.mark.parametrize(
    ("errors_before", "errors_after", "recovery", "variance", "value"),
    [
        (0.2, 0.05, None, 0.0, 0.3),
        (0.05, 0.2, None, 0.0, 0.0),
        (0.0, 0.0, 1.0, 0.0, 0.1),
        (0.0, 0.0, 0.5, 0.0, -0.9),
        (0.0, 0.0, None, 2.0, -0.2),
        (0.0, 0.0, None, 50.0, -0.5),
    ],
)
def test_stability_as_specified(
    errors_before: float, errors_after: float, recovery: float | None, variance: float, value: float
) -> None:
    assert rc.stability_improvement(errors_before, errors_after, recovery, variance) == pytest.approx(value)


def test_stability_relative_to_no_change() -> None:
    assert rc.relative_stability(0.1, 0.1, None, 3.0, 3.0) == 0
    assert rc.relative_stability(0.0, 0.0, None, 1.0, 3.0) == pytest.approx(-0.2)
    assert rc.relative_stability(0.0, 0.0, None, 3.0, 1.0) == pytest.approx(0.2)


def test_memory() -> None:
    assert rc.memory_efficiency(1500, 6000) == -0.25
    assert rc.memory_efficiency(-1500, 6000) == 0.25
    assert rc.memory_efficiency(0, 6000) == 0
    assert rc.memory_efficiency(9000, 6000) == -1
    assert rc.memory_efficiency(10, 0) == -1


def test_cost() -> None:
    assert rc.adaptation_cost(0, 6000, 0.0) == 0.2
    assert rc.adaptation_cost(6000, 6000, 0.0) == pytest.approx(0.4)
    assert rc.adaptation_cost(1300, 6000, 0.0) == pytest.approx(0.2 + 0.2 * math.log(1301) / math.log(6001))
    assert rc.adaptation_cost(0, 6000, 0.5) == pytest.approx(0.3)
    assert rc.adaptation_cost(-500, 6000, -0.5) == 0.2  # freed parameters are rewarded by memory_efficiency
    assert rc.adaptation_cost(10**9, 10, 50.0) == pytest.approx(0.6)


def test_risk() -> None:
    assert rc.risk_penalty(0.0, 0.0, 0, 0.0) == 0
    assert rc.risk_penalty(0.0, 0.1, 0, 0.0) == pytest.approx(0.5)
    assert rc.risk_penalty(0.1, 0.0, 0, 0.0) == 0
    assert rc.risk_penalty(0.0, 0.0, 3, 0.5) == pytest.approx(0.25 + 0.05)
    assert rc.risk_penalty(0.0, 1.0, 1, 1.0) == 1


def test_a_recovered_error_does_not_earn() -> None:
    stability = rc.relative_stability(0.0, 0.0, 1.0, 0.0, 0.0)
    assert rc.weighted_sum({rc.STABILITY: stability, rc.RISK: rc.risk_penalty(0.0, 0.0, 1, 0.0)}) < 0


def test_total_is_tanh_of_the_weighted_sum() -> None:
    components = {rc.ACCURACY: 1.0, rc.SPEED: -0.5, rc.MEMORY: -0.25, rc.STABILITY: 0.0, rc.COST: 0.4, rc.RISK: 0.2}
    assert rc.weighted_sum(components) == pytest.approx(1.0 - 0.3 - 0.1 - 0.12 - 0.1)
    assert rc.total(components) == pytest.approx(math.tanh(0.38))
    assert rc.total(rc.NOTHING) == 0
    assert rc.total({}) == 0


@given(*[st.floats(0, 1e6)] * 2, st.integers(-(10**9), 10**9), st.integers(0, 10**9), *[st.floats(0, 1)] * 3)
def test_bounds(
    before: float, after: float, parameters: int, budget: int, low: float, high: float, uncertainty: float
) -> None:
    assert -1 <= rc.relative_speed(before, after) <= 1
    assert -1 <= rc.memory_efficiency(parameters, budget) <= 1
    assert 0.2 <= rc.adaptation_cost(parameters, budget, after) <= 0.6 + 1e-12
    assert 0 <= rc.risk_penalty(low, high, 1, uncertainty) <= 1
