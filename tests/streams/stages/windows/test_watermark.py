"""Closings: what was final when, and what of it may be forgotten."""

from hypothesis import given
from hypothesis import strategies as st

from tamiyo.streams.stages.windows.watermark import FinalizedWindows

offsets = st.integers(0, 60)


def test_what_was_final_before_an_input() -> None:
    closings = FinalizedWindows()
    for end, offset in ((50, 3), (100, 7)):
        closings.add(end, offset)
    assert [closings.before(offset) for offset in (3, 4, 7, 8)] == [0, 50, 50, 100]
    assert closings.floor == 100


@given(st.lists(st.tuples(st.integers(0, 1000), offsets), max_size=20), offsets)
def test_settling_changes_no_answer_to_what_is_still_asked(entries: list[tuple[int, int]], settled: int) -> None:
    whole, settling = FinalizedWindows(), FinalizedWindows()
    for end, offset in entries:
        whole.add(end, offset)
        settling.add(end, offset)

    settling.settle(settled)

    assert settling.floor == whole.floor
    for offset in range(settled + 1, 70):
        assert settling.before(offset) == whole.before(offset)


def test_settling_keeps_one() -> None:
    closings = FinalizedWindows()
    for number in range(10):
        closings.add(50 * number, number)
    closings.settle(9)
    assert len(closings._entries) == 1
