import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.streams.stages.rewards.projection import DAMPING, Projection

TIMES = [float(t) for t in range(0, 600, 50)]


def test_a_straight_fall_of_log_loss_is_found_exactly() -> None:
    projection = Projection.fit(TIMES, [2 * math.exp(-0.001 * t) for t in TIMES], origin=600)
    assert projection is not None
    assert projection.slope == pytest.approx(-0.001)
    assert projection.level == pytest.approx(math.log(2) - 0.6)
    assert projection.horizon == pytest.approx(DAMPING * 550)
    assert projection.noise == pytest.approx(0, abs=1e-12)
    assert math.exp(projection.log_loss(600)) == pytest.approx(2 * math.exp(-0.6))
    # One horizon on, 1 - 1/e of a fall by slope x horizon has happened.
    assert projection.log_loss(600 + projection.horizon) == pytest.approx(
        math.log(2) - 0.6 - DAMPING * 0.55 * (1 - 1 / math.e)
    )


def test_the_whole_projected_fall_is_no_more_than_the_fall_that_was_seen() -> None:
    projection = Projection.fit(TIMES, [2 * math.exp(-0.001 * t) for t in TIMES], origin=600)
    assert projection is not None
    assert projection.log_loss(1e9) == pytest.approx(projection.level - DAMPING * 0.55)


def test_a_rise_is_projected_flat() -> None:
    projection = Projection.fit(TIMES, [math.exp(0.001 * t) for t in TIMES], origin=600)
    assert projection is not None
    assert projection.slope == 0
    assert projection.log_loss(600) == projection.log_loss(5000)


def test_two_outlying_windows_do_not_bend_the_trend() -> None:
    losses = [2 * math.exp(-0.001 * t) for t in TIMES]
    losses[3], losses[8] = 40.0, 0.001
    projection = Projection.fit(TIMES, losses, origin=600)
    assert projection is not None
    assert projection.slope == pytest.approx(-0.001, rel=0.05)
    assert math.exp(projection.log_loss(600)) == pytest.approx(2 * math.exp(-0.6), rel=0.05)


def test_noise_is_the_scatter_of_one_window_and_the_margin_that_of_the_level() -> None:
    losses = [math.exp(0.1 if index % 2 else -0.1) for index in range(12)]
    projection = Projection.fit(TIMES, losses, origin=600)
    assert projection is not None
    assert projection.noise == pytest.approx(1.4826 * 0.1, rel=0.15)
    assert projection.margin == pytest.approx(projection.noise / math.sqrt(12))


@pytest.mark.parametrize(
    ("times", "losses"),
    [
        ([], []),
        ([0, 50], [1.0, 0.9]),
        ([0, 50, 100], [1.0, 0.0, 0.9]),
        ([0, 50, 100], [1.0, -0.5, 0.9]),
        ([50, 50, 50], [1.0, 0.9, 0.8]),
    ],
)
def test_too_few_losses_give_no_trend(times: list[float], losses: list[float]) -> None:
    assert Projection.fit(times, losses, origin=100) is None


@given(st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=20), st.floats(0, 1e6))
def test_a_projection_is_finite_and_never_rises(losses: list[float], ahead: float) -> None:
    times = [50.0 * index for index in range(len(losses))]
    projection = Projection.fit(times, losses, origin=times[-1])
    assert projection is not None
    assert math.isfinite(projection.log_loss(times[-1] + ahead))
    assert projection.log_loss(times[-1] + ahead) <= projection.log_loss(times[-1])
    assert projection.noise >= 0
