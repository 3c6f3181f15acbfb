"""What a signal is to the windows of its run, case by case."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.schemas.topics import CACHE_HIT_RATES
from tamiyo.streams.stages.windows.classification import Late, Repeat, Window, classify
from tamiyo.streams.stages.windows.finalized_windows import FinalizedWindows
from tests.support.telemetry import signal

SOURCE = CACHE_HIT_RATES.name


def classified(
    step: int,
    offset: int = 100,
    *,
    closes: Sequence[tuple[int, int]] = (),
    inside: Sequence[str] = (),
    passed: int = 0,
    windows: Any = None,
    final: bool = False,
) -> Repeat | Late | Window:
    """Classify a signal at `step`; `closes` are pairs of a window's end and the offset that closed it."""
    finalized = FinalizedWindows()
    finalized.add_signals(inside)
    for end, closed_by in closes:
        finalized.add("run", end, closed_by)
    one = signal(SOURCE, step, final=final)
    return classify(one, one.step, offset, width=50, finalized=finalized, passed=passed, windows=windows or {})


def name(step: int, final: bool = False) -> str:
    return signal(SOURCE, step, final=final).signal_id


def test_a_signal_of_a_new_run_belongs_in_its_window() -> None:
    assert [classified(step) for step in (0, 49, 50)] == [Window(0, 0), Window(0, 49), Window(50, 50)]


def test_a_signal_inside_a_closed_window_is_a_repeat_even_if_its_window_was_final() -> None:
    assert classified(20, closes=[(50, 7)], inside=[name(20)]) == Repeat()


def test_a_signal_in_its_open_window_is_a_repeat_and_one_in_another_is_not() -> None:
    assert classified(20, windows={0: {name(20)}}) == Repeat()
    assert classified(20, windows={50: {name(20)}}) == Window(0, 20)


@pytest.mark.parametrize(("offset", "expected"), [(7, Repeat()), (8, Late(50))])
def test_a_window_closed_before_the_signal_makes_it_late_and_one_closed_later_has_it_inside(
    offset: int, expected: Repeat | Late
) -> None:
    assert classified(49, offset, closes=[(50, 7)]) == expected
    assert classified(50, offset, closes=[(50, 7)]) == Window(50, 50)


def test_a_signal_behind_the_watermark_is_late_though_nothing_closed() -> None:
    assert classified(99, passed=100) == Late(100)
    assert classified(100, passed=100) == Window(100, 100)
    assert classified(20, closes=[(50, 7)], passed=100) == Late(100)


def test_a_last_frame_behind_what_was_final_counts_in_the_next_window() -> None:
    assert classified(20, closes=[(50, 7)], final=True) == Window(50, 50)
    assert classified(20, passed=100, final=True) == Window(100, 100)
    assert classified(20, closes=[(50, 7)], windows={50: {name(20, True)}}, final=True) == Repeat()


def test_a_last_frame_counted_in_the_next_window_is_a_repeat_once_that_was_published() -> None:
    assert classified(20, 9, closes=[(50, 7), (100, 9)], final=True) == Repeat()


@given(
    st.integers(0, 400),
    st.integers(0, 20),
    st.lists(st.tuples(st.integers(0, 8).map(lambda number: 50 * number), st.integers(0, 20)), max_size=6),
    st.integers(0, 8).map(lambda number: 50 * number),
    st.booleans(),
)
def test_no_signal_is_put_into_a_window_that_is_final(
    step: int, offset: int, closes: list[tuple[int, int]], passed: int, final: bool
) -> None:
    found = classified(step, offset, closes=sorted(closes), passed=passed, final=final)
    ends = [end for end, _ in closes]
    if isinstance(found, Window):
        assert found.start <= found.clock < found.start + 50
        assert found.clock >= max([step, passed, *ends])
        assert found.clock == step or final
    elif isinstance(found, Late):
        assert not final
        assert step < found.final_end <= max([passed, *ends])
    else:
        assert closes
        assert step < max(ends)
