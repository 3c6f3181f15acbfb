"""Trends of a soak's series and their verdicts."""

import random

import pytest

from tamiyo.evaluation.soak.trends import (
    TOLERANCES,
    WARM_S,
    Tolerance,
    between,
    independent,
    longest_life,
    thin,
    trend,
    verdict,
)

MEMORY = TOLERANCES["rss_mb"]
HOUR = [10.0 * number for number in range(361)]


def test_a_leak_is_found_with_its_rate_through_noise_and_outliers() -> None:
    noise = random.Random(0)
    leak = [(t, 400 + 12 * t / 3600 + noise.gauss(0, 1) + 200 * (noise.random() < 0.1)) for t in HOUR]

    found = trend(leak, MEMORY)

    assert found.grows
    assert found.slope_per_hour == pytest.approx(12, abs=1.5)
    assert found.verdict.endswith("MB per hour")
    assert (found.minutes, found.points) == (60, 361)


def test_noise_is_flat() -> None:
    noise = random.Random(1)
    assert trend([(t, 400 + noise.gauss(0, 3)) for t in HOUR], MEMORY).verdict == "flat"


def correlated(seed: int) -> list[float]:
    """Return an autoregressive series, like the lag while runs are abandoned and time out."""
    noise = random.Random(seed)
    values = [0.0]
    for _ in range(600):
        values.append(0.9 * values[-1] + noise.gauss(0, 1))
    return [1000 + 200 * value for value in values[-len(HOUR) :]]


def test_a_correlated_series_without_trend_seldom_seems_to_have_one() -> None:
    lags = [list(zip(HOUR, correlated(seed), strict=True)) for seed in range(60)]
    found = [trend(each, TOLERANCES["lag"]) for each in lags]
    assert sum(each.verdict.startswith(("grows", "falls")) for each in found) <= 6  # 5 % are expected
    assert all(6 <= each.stretches < 100 for each in found)
    climbing = [[(t, value + 2000 * t / 3600) for t, value in each] for each in lags]
    assert sum(trend(each, TOLERANCES["lag"]).grows for each in climbing) >= 57


def test_independent_points_are_not_put_into_blocks() -> None:
    noise = random.Random(2)
    points = [(t, noise.gauss(0, 3)) for t in HOUR]
    assert len(independent(points)) >= len(points) / 2
    line = [(t, 2 * t) for t in HOUR]
    assert independent(line) == line


def test_one_change_of_level_is_not_judged() -> None:
    found = trend([(t, 400.0 + 50 * (t > 900)) for t in HOUR], MEMORY)
    assert found.verdict == "not judged: only 5 independent blocks of points"


def test_a_short_series_is_not_judged() -> None:
    found = trend([(t, t) for t in HOUR[:60]], MEMORY)
    assert found.verdict == "not judged: 10 minutes are too short"
    assert found.slope_per_hour is None
    assert trend([], MEMORY).verdict.startswith("not judged")


@pytest.mark.parametrize(
    ("slope", "low", "high", "words"),
    [
        (1.9, 1.8, 2.0, "flat"),
        (5.0, 4.0, 6.0, "grows 5 MB per hour"),
        (-5.0, -6.0, -4.0, "falls 5 MB per hour"),
        (5.0, -1.0, 11.0, "not distinguishable from flat: grows 5 MB per hour, -1 to 11"),
    ],
)
def test_verdicts(slope: float, low: float, high: float, words: str) -> None:
    assert verdict(slope, low, high, 2.0, "MB") == words


def test_the_larger_tolerance_applies() -> None:
    tolerance = Tolerance("records", 20, 0.1)
    assert tolerance.of([100, 110, 120]) == 20
    assert tolerance.of([1000]) == 100


def test_the_longest_life_is_judged_without_its_warm_up() -> None:
    lives = [(t, 1, 0.0) for t in (0.0, 10.0)] + [(t, 2, 1.0) for t in (20.0, 20 + WARM_S, 500.0)] + [(510.0, 3, 2.0)]
    assert longest_life(lives) == [(20 + WARM_S, 1.0), (500.0, 1.0)]
    restarted = [(t, 1, 0.0) for t in (0.0, 500.0)] + [(t, 2, 1.0) for t in (1000.0, 1200.0, 1000 + WARM_S, 2000.0)]
    assert longest_life(restarted) == [(1000 + WARM_S, 1.0), (2000.0, 1.0)]
    assert longest_life([]) == []


def test_a_part_of_a_series_and_thinning() -> None:
    points = [(float(t), float(t)) for t in range(10)]
    assert between(points, 4, 8) == [(4, 4), (5, 5), (6, 6), (7, 7), (8, 8)]
    assert thin(points, 5) == [(0.5, 0.5), (2.5, 2.5), (4.5, 4.5), (6.5, 6.5), (8.5, 8.5)]
    assert thin(points, 4, highest=True) == [(1.0, 2.0), (4.0, 5.0), (7.0, 8.0), (9.0, 9.0)]
    assert thin([], 5) == []
