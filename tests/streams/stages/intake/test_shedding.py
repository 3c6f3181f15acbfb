"""Survival probabilities that fill a budget, and draws that depend on the signal's id alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.streams.stages.intake.shedding import draws, survival


def test_by_hand() -> None:
    # weights 1, 1, 1, 16: the last is kept for certain, the others share the remaining budget
    priority = np.array([0.0, 0.0, 0.0, 3.0])
    chances = survival(priority, np.zeros(4, dtype=bool), 2.0)
    assert chances.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])


def test_a_row_one_deviation_from_its_median_survives_four_times_as_likely() -> None:
    assert survival(np.array([0.0, 1.0]), np.zeros(2, dtype=bool), 1.0).tolist() == pytest.approx([0.2, 0.8])


def test_the_exempt_are_kept_whatever_the_budget() -> None:
    chances = survival(np.zeros(3), np.array([True, False, True]), 1.0)
    assert chances.tolist() == [1.0, 0.0, 1.0]


@given(
    st.lists(st.tuples(st.floats(0, 100), st.booleans()), min_size=1, max_size=50),
    st.floats(0, 60),
)
def test_probabilities_fill_the_budget_and_grow_with_priority(rows: list[tuple[float, bool]], budget: float) -> None:
    priority = np.array([row[0] for row in rows])
    exempt = np.array([row[1] for row in rows])
    chances = survival(priority, exempt, budget)
    assert ((chances >= 0) & (chances <= 1)).all()
    assert (chances[exempt] == 1).all()
    expected = min(max(budget, float(exempt.sum())), len(rows))
    assert chances.sum() == pytest.approx(expected, abs=1e-9)
    ordered = chances[~exempt][np.argsort(priority[~exempt])]
    assert (np.diff(ordered) >= -1e-12).all()


def test_draws_depend_on_the_signals_id() -> None:
    name = "0123456789abcdef" * 2
    assert draws(name, 5).tolist() == draws(name, 5).tolist()
    assert draws(name, 5).tolist() != draws(name[::-1], 5).tolist()
    many = draws(name, 20_000)
    assert many.min() >= 0
    assert many.max() < 1
    assert many.mean() == pytest.approx(0.5, abs=0.01)
