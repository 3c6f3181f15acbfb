"""The ids added last are members, and no more are kept than the bound allows."""

from hypothesis import given
from hypothesis import strategies as st

from tamiyo.streams.stages.recent_ids import BLOCK, RecentIds


@given(st.integers(1, 3 * BLOCK), st.integers(0, 6 * BLOCK))
def test_the_last_ids_are_members_and_no_others(most: int, count: int) -> None:
    recent = RecentIds(most)
    for number in range(count):
        recent.add(f"name-{number}")
    members = [number for number in range(count + 5) if f"name-{number}" in recent]
    assert members == list(range(members[0] if members else count, count))
    assert min(most, count) <= len(members) < most + BLOCK


def test_a_discarded_id_is_no_member_and_may_be_added_again() -> None:
    recent = RecentIds(2 * BLOCK)
    for number in range(BLOCK + 5):  # of the first, sorted ones and of those after them
        recent.add(f"name-{number}")
    for name in ("name-3", f"name-{BLOCK + 2}", "never added"):
        recent.discard(name)
    assert [number for number in range(BLOCK + 5) if f"name-{number}" not in recent] == [3, BLOCK + 2]
    recent.add("name-3")
    assert "name-3" in recent


def test_an_id_that_is_added_repeatedly_does_not_push_others_out() -> None:
    recent = RecentIds(2)
    recent.add("other")
    for _ in range(5 * BLOCK):
        recent.add("again")
    assert "other" in recent
    assert "again" in recent
