import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.streams.stages.rewards.gain import Gain, combine

VALUES = st.floats(-3, 3)


@pytest.mark.parametrize(
    ("projected", "counterfactual", "value"),
    [
        (0.3, 0.1, 0.1),
        (0.1, 0.3, 0.1),
        (0.3, -0.1, -0.1),
        (-0.3, 0.1, 0.0),  # the kernel helps: the projection was too optimistic
        (-0.3, 0.0, -0.3),
        (-0.3, -0.1, -0.3),
    ],
)
def test_the_smaller_gain_counts(projected: float, counterfactual: float, value: float) -> None:
    assert combine(Gain(projected, 0.02), Gain(counterfactual)) == Gain(value, 0.02)


def test_one_measurement_alone_counts() -> None:
    assert combine(Gain(0.3, 0.02), None) == Gain(0.3, 0.02)
    assert combine(None, Gain(0.1)) == Gain(0.1, None)
    assert combine(None, None) is None


@given(VALUES, VALUES)
def test_nothing_is_credited_that_either_measurement_denies(projected: float, counterfactual: float) -> None:
    found = combine(Gain(projected, 0.1), Gain(counterfactual))
    assert found is not None
    assert found.value <= max(0.0, projected)
    assert found.value <= counterfactual


def test_confidence() -> None:
    assert Gain(0.3, 0.0).confidence == 1
    assert Gain(0.3, 0.2).confidence == 0.5
    assert Gain(0.3, 0.6).confidence == pytest.approx(0.25)
    assert Gain(0.3).confidence == 0.5
