"""Which windows were final when, and what of it may be forgotten."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.streams.stages.windows import finalized_windows
from tamiyo.streams.stages.windows.finalized_windows import MAX_CLOSES, FinalEnds, FinalizedWindows

offsets = st.integers(0, 60)


def test_what_was_final_before_an_input() -> None:
    ends = FinalEnds()
    for end, offset in ((50, 3), (100, 7)):
        ends.add(end, offset)
    assert [ends.end_before(offset) for offset in (3, 4, 7, 8)] == [0, 50, 50, 100]
    assert ends.end == 100


def test_the_end_never_goes_back() -> None:
    ends = FinalEnds()
    ends.add(100, 3)
    ends.add(50, 7)
    assert ends.end == 100
    assert ends.end_before(8) == 100


@given(st.lists(st.tuples(st.integers(0, 1000), offsets), max_size=20), offsets)
def test_discarding_changes_nothing_for_later_inputs(entries: list[tuple[int, int]], processed: int) -> None:
    whole, reduced = FinalEnds(), FinalEnds()
    for end, offset in entries:
        whole.add(end, offset)
        reduced.add(end, offset)

    reduced.discard_before(processed)

    assert reduced.end == whole.end
    for offset in range(processed + 1, 70):
        assert reduced.end_before(offset) == whole.end_before(offset)


def test_discarding_keeps_one_close() -> None:
    ends = FinalEnds()
    for number in range(10):
        ends.add(50 * number, number)
    ends.discard_before(9)
    assert len(ends._closes) == 1


def test_the_closes_of_a_run_are_bounded_and_the_newest_stay() -> None:
    ends = FinalEnds()
    for number in range(MAX_CLOSES + 10):
        ends.add(50 * (number + 1), number)
    assert len(ends._closes) == MAX_CLOSES
    assert ends.end_before(MAX_CLOSES + 10) == 50 * (MAX_CLOSES + 10)
    assert ends.end_before(11) == 50 * 11
    assert ends.end_before(10) == 0


def test_a_closed_windows_signals_are_recognised_by_the_first_digits_of_their_ids() -> None:
    finalized = FinalizedWindows()
    finalized.close("run", 50, 7, ["0123456789abcdef" + "0" * 16])
    assert finalized.contains("0123456789abcdef" + "1" * 16)
    assert not finalized.contains("0" * 32)
    ends = finalized.run("run")
    assert ends is not None
    assert (ends.end, ends.end_before(7), ends.end_before(8)) == (50, 0, 50)
    assert finalized.run("other") is None


def test_only_the_newest_close_of_a_live_run_is_kept() -> None:
    finalized = FinalizedWindows()
    for number in range(10):
        finalized.close("run", 50 * (number + 1), number, [])
    ends = finalized.run("run")
    assert ends is not None
    assert len(ends._closes) == 1


def test_runs_are_bounded_and_the_one_whose_window_closed_last_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finalized_windows, "MAX_RUNS", 2)
    finalized = FinalizedWindows()
    for run_id in ("one", "two", "one", "three"):
        finalized.add(run_id, 50, 0)
    assert [finalized.run(run_id) is not None for run_id in ("one", "two", "three")] == [True, False, True]
