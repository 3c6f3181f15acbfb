"""Probabilities that fill a budget, and draws that a signal's id decides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.streams.stages.intake.shedding import draws, survival


def test_by_hand() -> None:
    # weights 1, 1, 1, 16: the last is certain to be kept, the rest share what is left
    priority = np.array([0.0, 0.0, 0.0, 3.0])
    found = survival(priority, np.zeros(4, dtype=bool), 2.0)
    assert found.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])


def test_the_exempt_are_kept_whatever_the_budget() -> None:
    found = survival(np.zeros(3), np.array([True, False, True]), 1.0)
    assert found.tolist() == [1.0, 0.0, 1.0]


@given(
    st.lists(st.tuples(st.floats(0, 100), st.booleans()), min_size=1, max_size=50),
    st.floats(0, 60),
)
def test_probabilities_fill_the_budget_and_grow_with_priority(rows: list[tuple[float, bool]], budget: float) -> None:
    priority = np.array([row[0] for row in rows])
    exempt = np.array([row[1] for row in rows])
    found = survival(priority, exempt, budget)
    assert ((found >= 0) & (found <= 1)).all()
    assert (found[exempt] == 1).all()
    expected = min(max(budget, float(exempt.sum())), len(rows))
    assert found.sum() == pytest.approx(expected, abs=1e-9)
    ordered = found[~exempt][np.argsort(priority[~exempt])]
    assert (np.diff(ordered) >= -1e-12).all()


def test_draws_are_the_signals_own() -> None:
    name = "0123456789abcdef" * 2
    assert draws(name, 5).tolist() == draws(name, 5).tolist()
    assert draws(name, 5).tolist() != draws(name[::-1], 5).tolist()
    many = draws(name, 20_000)
    assert many.min() >= 0
    assert many.max() < 1
    assert many.mean() == pytest.approx(0.5, abs=0.01)
