"""How long a run has said nothing: by the broker's time where all was read, else by what passes here."""

from tamiyo.streams.stages.idle_timer import IdleTimer


def test_it_lasts_from_the_runs_last_record_where_all_was_read() -> None:
    silence = IdleTimer()
    silence.record(1_000)
    silence.record(5_000)
    silence.record(2_000)  # topics have no order among them
    assert silence.idle_ms(60_000, backlog=0) == 55_000  # read just now, by a process that has just begun
    assert silence.idle_ms(61_000, backlog=0) == 56_000
    silence.record(61_500)
    assert silence.idle_ms(62_000, backlog=0) == 500


def test_while_records_wait_only_what_passes_here_counts() -> None:
    silence = IdleTimer()
    silence.record(1_000)
    assert silence.idle_ms(60_000, backlog=3) == 0
    assert silence.idle_ms(70_000, backlog=3) == 10_000
    assert silence.idle_ms(71_000, backlog=None) == 11_000
    silence.record(1_200)
    assert silence.idle_ms(80_000, backlog=None) == 0
    assert silence.idle_ms(80_000, backlog=0) == 78_800


def test_a_run_that_was_never_heard_and_a_clock_that_is_ahead_are_no_silence() -> None:
    assert IdleTimer().idle_ms(60_000, backlog=0) == 0
    silence = IdleTimer()
    silence.record(90_000)
    assert silence.idle_ms(60_000, backlog=0) == 0
