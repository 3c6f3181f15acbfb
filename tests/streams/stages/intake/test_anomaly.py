"""Robust deviation from a layer's own last frames, compared with a slow computation by the standard library."""

import random
from statistics import median

import numpy as np
import pytest

from tamiyo.schemas.record import MAX_LAYERS
from tamiyo.streams.stages.intake.anomaly import HIGHEST, ROWS_TOGETHER, Measured, RunDeviations


class OneRun:
    """The deviations of one run and source, frame by frame."""

    def __init__(self, *, frames: int, minimum: int) -> None:
        self._deviations = RunDeviations(frames=frames, minimum=minimum)

    def update(self, layers: list[str], values: np.ndarray) -> np.ndarray:
        (found,) = self._deviations.update([Measured("run", "source", layers, values)])
        return found


def slow(history: list[float | None], value: float | None, minimum: int) -> float:
    known = [one for one in history if one is not None]
    if value is None or len(known) < minimum:
        return 0.0
    middle = median(known)
    mad = median([abs(one - middle) for one in known])
    return min(abs(value - middle) / (1.4826 * mad + 1e-3 * abs(middle) + 1e-9), HIGHEST)


def test_by_hand() -> None:
    tracked = OneRun(frames=8, minimum=5)
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        assert tracked.update(["a"], np.array([[value]])).tolist() == [0.0]
    # median 3, absolute deviations 2 1 0 1 2: MAD 1
    assert tracked.update(["a"], np.array([[6.0]])).tolist() == pytest.approx([3.0 / (1.4826 + 0.003)], rel=1e-6)


def test_against_a_slow_computation() -> None:
    rng = random.Random(5)
    tracked = OneRun(frames=16, minimum=4)
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
    tracked = OneRun(frames=8, minimum=4)
    for value in [1.0, 1.1] * 10 + [50.0, 51.0] * 4:
        tracked.update(["a"], np.array([[value]]))
    assert tracked.update(["a"], np.array([[50.5]]))[0] < 1.0


def test_an_outlier_does_not_hide_the_next() -> None:
    tracked = OneRun(frames=16, minimum=4)
    for value in [1.0, 1.1, 0.9, 1.05] * 4 + [1000.0]:
        tracked.update(["a"], np.array([[value]]))
    assert tracked.update(["a"], np.array([[3.0]]))[0] > 10.0


def test_a_constant_that_changes_is_unusual_but_bounded() -> None:
    tracked = OneRun(frames=8, minimum=4)
    for _ in range(8):
        assert tracked.update(["a"], np.array([[2.0]])).tolist() == [0.0]
    assert tracked.update(["a"], np.array([[3.0]])).tolist() == [HIGHEST]


def test_extremes_stay_finite() -> None:
    tracked = OneRun(frames=8, minimum=4)
    for value in [1e39, 3e38, 3e38, -3e38, 1e39, 0.0, 1e-300, 3e38, 1e39, 5.0]:
        deviation = tracked.update(["a"], np.array([[value]]))
        assert 0.0 <= deviation[0] <= HIGHEST


def frames_of(runs: int, count: int, layers: int) -> list[Measured]:
    """Return frames of several runs and two sources, interleaved, with a final one in the middle of the first run."""
    rng = np.random.default_rng(runs)
    names = [f"layer.{number}" for number in range(layers)]
    result = []
    for number in range(count):
        for run in range(runs):
            for source, metrics in (("one", 2), ("two", 3)):
                values = rng.normal(size=(layers, metrics))
                values[rng.random(values.shape) < 0.1] = np.nan
                final = run == 0 and number == count // 2
                result.append(
                    Measured(f"run-{run}", source, names[: layers - run % 2], values[: layers - run % 2], final)
                )
    return result


@pytest.mark.parametrize(("runs", "layers"), [(5, 3), (3, ROWS_TOGETHER)])
def test_frames_computed_together_give_what_they_give_one_by_one(runs: int, layers: int) -> None:
    measured = frames_of(runs, 30, layers)
    alone, together = (RunDeviations(frames=16, minimum=4) for _ in range(2))
    expected = [alone.update([frame])[0] for frame in measured]
    found = [each for start in range(0, len(measured), 47) for each in together.update(measured[start : start + 47])]
    assert [each.tolist() for each in found] == [each.tolist() for each in expected]
    assert any(each.max() > 0 for each in found)
    assert together.cells == alone.cells > 0


def test_rows_of_a_forgotten_run_begin_empty_for_the_next() -> None:
    deviations = RunDeviations(frames=8, minimum=2)
    rows = np.array([[1.0], [2.0]])
    for _ in range(4):
        deviations.update([Measured("a", "s", ["x", "y"], rows)])
    deviations.update([Measured("goes on", "s", ["x"], rows[:1])])  # so that the rows are kept for the next
    deviations.forget("a", "s")
    assert (deviations.cells, len(deviations)) == (8, 1)
    fresh = RunDeviations(frames=8, minimum=2)
    for number in range(6):
        frame = Measured("b", "s", ["x", "y"], (100 + number**2) * rows)
        (found,), (expected,) = deviations.update([frame]), fresh.update([frame])
        assert found.tolist() == expected.tolist()
    assert found.max() > 0


def test_a_run_begins_anew_after_its_last_frame() -> None:
    deviations = RunDeviations(frames=8, minimum=2)
    rows = np.array([[1.0]])
    for number in range(4):
        deviations.update([Measured("run", "s", ["x"], rows, final=number == 3)])
    assert (deviations.cells, len(deviations)) == (0, 0)
    (found,) = deviations.update([Measured("run", "s", ["x"], 100 * rows)])
    assert found.tolist() == [0.0]


def test_the_runs_that_have_been_idle_longest_are_forgotten_beyond_the_bound() -> None:
    deviations = RunDeviations(frames=8, minimum=2, cells=8 * 3)
    for number in range(6):
        deviations.update([Measured(f"run-{number}", "s", ["x"], np.array([[1.0]]))])
        assert deviations.cells <= 8 * 3
    assert len(deviations) == 3
    deviations.update([Measured("huge", "s", [str(n) for n in range(9)], np.ones((9, 1)))])
    assert len(deviations) == 1, "the active run stays, however large"


def test_a_run_that_names_ever_new_layers_starts_anew() -> None:
    deviations = RunDeviations(frames=2, minimum=1)
    for start in range(0, 3 * MAX_LAYERS, 1_000):
        deviations.update([Measured("run", "s", [str(n) for n in range(start, start + 1_000)], np.ones((1_000, 1)))])
        assert deviations.cells <= 2 * (MAX_LAYERS + 2_000)
