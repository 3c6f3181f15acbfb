"""Robust deviation from a layer's own last frames, compared with a slow computation by the standard library."""

import random
from statistics import median

import numpy as np
import pytest

from tamiyo.streams.stages.intake.anomaly import HIGHEST, RollingDeviation


def slow(history: list[float | None], value: float | None, minimum: int) -> float:
    known = [one for one in history if one is not None]
    if value is None or len(known) < minimum:
        return 0.0
    middle = median(known)
    mad = median([abs(one - middle) for one in known])
    return min(abs(value - middle) / (1.4826 * mad + 1e-3 * abs(middle) + 1e-9), HIGHEST)


def test_by_hand() -> None:
    tracked = RollingDeviation(1, frames=8, minimum=5)
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        assert tracked.update(["a"], np.array([[value]])).tolist() == [0.0]
    # median 3, absolute deviations 2 1 0 1 2: MAD 1
    assert tracked.update(["a"], np.array([[6.0]])).tolist() == pytest.approx([3.0 / (1.4826 + 0.003)], rel=1e-6)


def test_against_a_slow_computation() -> None:
    rng = random.Random(5)
    tracked = RollingDeviation(2, frames=16, minimum=4)
    histories: dict[tuple[str, int], list[list[float | None]]] = {}
    for _ in range(60):
        layers = [name for name in ("a", "b", "b", "c") if rng.random() < 0.8]
        rows = [[rng.gauss(3, 1), None if rng.random() < 0.3 else rng.expovariate(1)] for _ in layers]
        nth: dict[str, int] = {}
        expected = []
        for layer, row in zip(layers, rows, strict=True):
            key = (layer, nth.get(layer, 0))
            nth[layer] = key[1] + 1
            history = histories.setdefault(key, [[], []])
            expected.append(max(slow(past[-16:], value, 4) for past, value in zip(history, row, strict=True)))
            for past, value in zip(history, row, strict=True):
                past.append(value)
        actual = tracked.update(layers, np.array(rows, dtype=float).reshape(len(layers), 2))
        assert actual.tolist() == pytest.approx(expected, rel=1e-3)


def test_only_the_last_frames_count() -> None:
    tracked = RollingDeviation(1, frames=8, minimum=4)
    for value in [1.0, 1.1] * 10 + [50.0, 51.0] * 4:
        tracked.update(["a"], np.array([[value]]))
    assert tracked.update(["a"], np.array([[50.5]]))[0] < 1.0


def test_an_outlier_does_not_hide_the_next() -> None:
    tracked = RollingDeviation(1, frames=16, minimum=4)
    for value in [1.0, 1.1, 0.9, 1.05] * 4 + [1000.0]:
        tracked.update(["a"], np.array([[value]]))
    assert tracked.update(["a"], np.array([[3.0]]))[0] > 10.0


def test_a_constant_that_changes_is_unusual_but_bounded() -> None:
    tracked = RollingDeviation(1, frames=8, minimum=4)
    for _ in range(8):
        assert tracked.update(["a"], np.array([[2.0]])).tolist() == [0.0]
    assert tracked.update(["a"], np.array([[3.0]])).tolist() == [HIGHEST]


def test_extremes_stay_finite() -> None:
    tracked = RollingDeviation(1, frames=8, minimum=4)
    for value in [1e39, 3e38, 3e38, -3e38, 1e39, 0.0, 1e-300, 3e38, 1e39, 5.0]:
        deviation = tracked.update(["a"], np.array([[value]]))
        assert 0.0 <= deviation[0] <= HIGHEST
