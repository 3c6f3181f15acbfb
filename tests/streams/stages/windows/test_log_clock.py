"""The log's own time: what a clock that was set does to it, which is nothing."""

from hypothesis import given
from hypothesis import strategies as st

from tamiyo.streams.stages.windows.log_clock import SLACK_MS, STEP_BACK_MS, LogClock

BEGAN_MS = 1_700_000_000_000
HOUR_MS = 3_600_000


def test_it_goes_with_the_timestamps_and_on_with_real_time() -> None:
    clock = LogClock()
    clock.record(BEGAN_MS)
    clock.record(BEGAN_MS + 700)
    clock.record(BEGAN_MS + 400)  # two writers
    assert clock.ms == BEGAN_MS + 700
    assert [clock.tick(now, read_all=False) - clock.ms for now in (5, 1_005, 9_005)] == [0, 1_000, 9_000]
    clock.record(BEGAN_MS + 800)
    assert clock.tick(9_500, read_all=False) == clock.ms == BEGAN_MS + 800


def test_hours_pass_while_a_stage_catches_up() -> None:
    clock = LogClock()
    clock.record(BEGAN_MS)
    clock.tick(0, read_all=False)
    clock.record(BEGAN_MS + HOUR_MS)
    assert clock.ms == BEGAN_MS + HOUR_MS


def test_a_clock_that_is_set_back_adds_nothing_and_time_goes_on_from_there() -> None:
    clock = LogClock()
    for timestamp_ms in (BEGAN_MS, BEGAN_MS - HOUR_MS, BEGAN_MS - HOUR_MS + 250):
        clock.record(timestamp_ms)
    assert clock.ms == BEGAN_MS + 250


def test_a_clock_that_is_set_ahead_adds_no_more_than_real_time_once_all_was_read() -> None:
    clock = LogClock()
    clock.record(BEGAN_MS)
    clock.tick(0, read_all=True)
    clock.tick(2_000, read_all=False)
    clock.record(BEGAN_MS + HOUR_MS)
    assert clock.ms == BEGAN_MS + 2_000 + SLACK_MS
    clock.record(BEGAN_MS + HOUR_MS + 5_000)
    assert clock.ms == BEGAN_MS + 2_000 + SLACK_MS
    assert clock.tick(3_000, read_all=False) == BEGAN_MS + 2_000 + SLACK_MS
    clock.record(BEGAN_MS + HOUR_MS + 9_000)
    assert clock.ms == BEGAN_MS + 3_000 + SLACK_MS


def test_before_the_first_record_no_time_is_known() -> None:
    clock = LogClock()
    clock.tick(0, read_all=True)
    clock.tick(HOUR_MS, read_all=True)
    clock.record(BEGAN_MS)
    assert clock.ms == BEGAN_MS


@given(st.lists(st.integers(-2 * HOUR_MS, 2 * HOUR_MS), min_size=1, max_size=30), st.integers(1, 5_000))
def test_whatever_the_timestamps_are_live_time_passes_as_real_time_does(jumps: list[int], step_ms: int) -> None:
    clock = LogClock()
    clock.record(BEGAN_MS)
    began = last = clock.tick(0, read_all=True)
    for count, jump in enumerate(jumps, 1):
        clock.record(BEGAN_MS + count * step_ms + jump)
        now = clock.tick(count * step_ms, read_all=True)
        assert last <= now <= began + count * (step_ms + SLACK_MS)
        last = now
    assert STEP_BACK_MS < HOUR_MS
