"""What was noted lately is known again, and no more than was asked for is kept."""

from hypothesis import given
from hypothesis import strategies as st

from tamiyo.streams.stages.recent_ids import BLOCK, RecentIds


@given(st.integers(1, 3 * BLOCK), st.integers(0, 6 * BLOCK))
def test_the_last_names_are_known_and_no_others(most: int, count: int) -> None:
    recent = RecentIds(most)
    for number in range(count):
        recent.add(f"name-{number}")
    known = [number for number in range(count + 5) if f"name-{number}" in recent]
    assert known == list(range(known[0] if known else count, count))
    assert min(most, count) <= len(known) < most + BLOCK


def test_a_name_that_comes_again_and_again_does_not_push_others_out() -> None:
    recent = RecentIds(2)
    recent.add("other")
    for _ in range(5 * BLOCK):
        recent.add("again")
    assert "other" in recent
    assert "again" in recent
