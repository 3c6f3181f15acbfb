"""The specification's health formula, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.streams.stages.intake.health_score import health_score


@pytest.mark.parametrize(
    ("latency", "errors", "executions", "hit_rate", "expected"),
    [
        (0.0, 0, 100, 1.0, 1.0),
        (5.0, 0, 100, 1.0, 0.8),  # 0.4 x 0.5 + 0.4 + 0.2
        (10.0, 0, 100, 1.0, 0.6),
        (250.0, 0, 100, 1.0, 0.6),  # latency counts up to 10 ms
        (0.0, 10, 100, 1.0, 0.8),  # 0.4 x (1 - 5 x 0.1)
        (0.0, 20, 100, 1.0, 0.6),
        (0.0, 90, 100, 1.0, 0.6),  # more than a fifth counts as a fifth
        (0.0, 1, 0, 1.0, 0.6),  # no execution counts as one
        (0.0, 0, 0, 0.25, 0.85),
        (10.0, 20, 100, 0.0, 0.0),
        (2.5, 4, 100, 0.5, 0.4 * 0.75 + 0.4 * 0.8 + 0.2 * 0.5),
    ],
)
def test_hand_computed(latency: float, errors: int, executions: int, hit_rate: float, expected: float) -> None:
    assert health_score([latency], [errors], [executions], [hit_rate]).tolist() == pytest.approx([expected], abs=1e-12)


def test_elementwise() -> None:
    score = health_score([0.0, 10.0], [0, 20], [1, 100], [1.0, 0.0])
    assert score.tolist() == pytest.approx([1.0, 0.0], abs=1e-12)


@given(st.floats(0, 1e38), st.integers(0, 2**62), st.integers(0, 2**62), st.floats(0, 1))
def test_stays_a_ratio(latency: float, errors: int, executions: int, hit_rate: float) -> None:
    assert 0.0 <= health_score([latency], [errors], [executions], [hit_rate])[0] <= 1.0
