"""How long a run has been idle: by the broker's time if all was read, else by what was read here."""

from tamiyo.streams.stages.idle_timer import IdleTimer


def test_without_a_backlog_it_counts_from_the_runs_last_record() -> None:
    timer = IdleTimer()
    timer.record(1_000)
    timer.record(5_000)
    timer.record(2_000)  # topics have no order among them
    assert timer.idle_ms(60_000, backlog=0) == 55_000  # read just now, by a process that has just started
    assert timer.idle_ms(61_000, backlog=0) == 56_000
    timer.record(61_500)
    assert timer.idle_ms(62_000, backlog=0) == 500


def test_with_a_backlog_only_the_time_since_the_last_record_read_here_counts() -> None:
    timer = IdleTimer()
    timer.record(1_000)
    assert timer.idle_ms(60_000, backlog=3) == 0
    assert timer.idle_ms(70_000, backlog=3) == 10_000
    assert timer.idle_ms(71_000, backlog=None) == 11_000
    timer.record(1_200)
    assert timer.idle_ms(80_000, backlog=None) == 0
    assert timer.idle_ms(80_000, backlog=0) == 78_800


def test_a_broker_clock_ahead_of_the_wall_clock_does_not_hide_idleness() -> None:
    timer = IdleTimer()
    timer.record(65_000)
    assert timer.idle_ms(60_000, backlog=0) == 0
    assert timer.idle_ms(70_000, backlog=0) == 10_000  # since it was read here


def test_a_run_without_records_and_a_clock_that_is_ahead_are_not_idle() -> None:
    assert IdleTimer().idle_ms(60_000, backlog=0) == 0
    timer = IdleTimer()
    timer.record(90_000)
    assert timer.idle_ms(60_000, backlog=0) == 0
    assert timer.idle_ms(50_000, backlog=None) == 0  # a wall clock that was set back


def test_a_record_that_arrives_live_is_new_whatever_clock_has_stamped_it() -> None:
    timer = IdleTimer()
    timer.record(60_000)
    assert timer.idle_ms(60_000, backlog=0) == 0
    timer.record(61_000 - 3_600_000)  # by a clock that was set back an hour
    assert timer.idle_ms(62_000, backlog=0, read_all_ms=60_000) <= 2_000
    new = IdleTimer()
    new.record(62_000 - 3_600_000)
    assert new.idle_ms(63_000, backlog=0, read_all_ms=62_000) == 1_000
    assert new.idle_ms(64_000, backlog=0, read_all_ms=63_000) == 2_000
    caught_up = IdleTimer()
    caught_up.record(1_000)
    assert caught_up.idle_ms(63_000, backlog=0, read_all_ms=None) == 62_000
