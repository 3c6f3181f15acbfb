"""A timeline has at most so many points, in order, whatever the order in which they come."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.streams.watch.history.timeline import Timeline

Points = list[tuple[int, int]]


def fill(points: Points, limit: int = 1_000) -> Timeline:
    """Return a timeline with points of (step, time); each value is its step."""
    made = Timeline({"value": "d"}, limit=limit)
    for revision, (step, time_ms) in enumerate(points, 1):
        made.add(step, time_ms, revision, {"value": float(step)})
    return made


def surviving(points: Points) -> Points:
    """Return the points that no later one, at the same step or before it, replaces."""
    ordered = sorted(points, key=lambda point: point[1])
    return [point for place, point in enumerate(ordered) if all(later[0] > point[0] for later in ordered[place + 1 :])]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10_000)), unique_by=lambda point: point[1], max_size=40))
def test_points_do_not_depend_on_the_order_in_which_they_come(points: Points) -> None:
    made = fill(points)
    assert list(zip(made.steps, made.times, strict=True)) == surviving(points)


def test_a_restart_drops_the_points_at_and_after_its_step() -> None:
    made = fill([(step, step) for step in range(10)])
    made.add(4, 100, 11, {"value": -1.0})
    assert made.steps.tolist() == [0, 1, 2, 3, 4]
    assert made.columns["value"][-1] == -1.0
    assert made.rewritten == 11


@given(st.integers(0, 700), st.integers(2, 50))
def test_a_long_series_is_thinned_evenly_and_keeps_its_newest_point(count: int, limit: int) -> None:
    made = fill([(step, step) for step in range(count)], limit)
    assert len(made) <= limit
    steps = made.steps.tolist()
    assert steps[-1:] == list(range(count))[-1:]
    whole = steps[: made.full]
    assert whole == [place * made.stride - 1 for place in range(1, len(whole) + 1)]
    assert list(made.columns["value"]) == [float(step) for step in steps]


def test_a_rare_measurement_survives_thinning() -> None:
    made = Timeline({"rare": "d"}, limit=10, kept=["rare"])
    for step in range(100):
        made.add(step, step, step + 1, {"rare": float(step) if step % 5 == 0 else math.nan})
    assert made.stride == 16
    before = -1
    for step, value in zip(made.steps, made.columns["rare"], strict=True):
        newest = step // 5 * 5
        assert value == newest if newest > before else math.isnan(value)
        before = step


@given(st.integers(1, 300), st.integers(1, 300), st.integers(3, 40))
def test_what_is_appended_is_the_same_as_the_whole(first: int, second: int, limit: int) -> None:
    made = fill([(step, step) for step in range(first)], limit)
    shown = made.steps[: made.full].tolist()
    for step in range(first, first + second):
        made.add(step, step, step + 1, {"value": float(step)})
    end = made.full
    begin = made.since(first, end)
    shown = made.steps[:end].tolist() if made.rewritten > first else [*shown, *made.steps[begin:end]]
    assert shown == made.steps[:end].tolist()


@pytest.mark.parametrize(("at_ms", "count"), [(None, 5), (-1, 0), (0, 1), (25, 3), (40, 5), (10**15, 5)])
def test_points_up_to_a_time(at_ms: int | None, count: int) -> None:
    assert fill([(step, 10 * step) for step in range(5)]).until(at_ms) == count
