"""Windows: exact content, final once, independent of the order of arrival and of where the process ends."""

from typing import Any

import pytest

from tamiyo.schemas.analysis import HealthSignals, HealthWindow
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.columns import entries
from tamiyo.schemas.identity import identity, window_id
from tamiyo.schemas.topics import (
    CACHE_HIT_RATES,
    ERROR_RECOVERY,
    SIGNALS,
)
from tamiyo.streams.stages.base import PriorOutput
from tamiyo.streams.stages.windows.log_clock import SLACK_MS
from tests.support.telemetry import (
    BEGAN_MS,
    COMPANIONS,
    incoming,
    outputs,
    partition,
    prior_outputs,
    rejects,
    signal,
    windows,
    windows_stage,
)

KERNEL, LAYER, MODEL = COMPANIONS
LAYERS = ("a", "b")


def frames(step: int, **fields: Any) -> list[HealthSignals]:
    """Return one step's frame of each companion."""
    return [
        signal(KERNEL, step, {"execution_latency_ms": [1.0 + step, None]}, layers=LAYERS, **fields),
        signal(LAYER, step, {"gradient_norm": [0.5, 0.25]}, layers=LAYERS, **fields),
        signal(MODEL, step, model_metrics={"train_loss": 2.0 - step / 100}, **fields),
    ]


def test_one_window_by_hand() -> None:
    log = [*frames(0), *frames(10), *frames(40), *frames(50)]
    stage = windows_stage()
    produced = stage.feed(partition(log))
    (output,) = outputs(produced)
    record = output.record
    assert output.identity == record.window_id == window_id("run", "step", 50, 0)
    assert output.source is not None
    assert output.source.offset == 11  # the slowest companion's frame closed it
    assert (record.clock, record.start, record.end) == ("step", 0, 50)
    assert (record.first_step, record.last_step, record.time_ms) == (0, 40, BEGAN_MS + 40_000)
    assert (record.signals, record.frames, record.shed, record.final) == (12, 9, 0, False)
    assert record.signals_digest == identity("signals", *sorted(one.signal_id for one in log[:9]))
    assert record.layer_id == ["a", "b"]
    assert list(record.metrics) == ["execution_latency_ms", "gradient_norm"]
    latency = record.metrics["execution_latency_ms"]
    assert entries(latency.count) == [3, 0]
    assert entries(latency.mean) == [pytest.approx(53 / 3), None]  # 1, 11, 41
    assert entries(latency.variance) == [pytest.approx((1 + 121 + 1681) / 3 - (53 / 3) ** 2), None]
    assert entries(latency.minimum) == [1.0, None]
    assert entries(latency.maximum) == entries(latency.last) == [41.0, None]
    assert entries(latency.slope) == [pytest.approx(1.0), None]
    loss = record.model_metrics["train_loss"]
    assert (loss.count, loss.maximum, loss.minimum, loss.last) == (3, 2.0, 1.6, 1.6)
    assert loss.slope == pytest.approx(-0.01)
    assert decode(encode(record), HealthWindow) == record


def test_one_value_has_no_slope_and_no_variance() -> None:
    (record,) = windows(windows_stage().feed(partition([*frames(10), *frames(50)])))
    assert entries(record.metrics["gradient_norm"].slope) == [None, None]
    assert entries(record.metrics["gradient_norm"].variance) == [0.0, 0.0]
    assert record.model_metrics["train_loss"].slope is None


def test_several_rows_of_a_layer_count_each_and_two_at_one_time_have_no_slope() -> None:
    twice = signal(KERNEL, 5, {"execution_latency_ms": [1.0, 3.0]}, layers=["a", "a"])
    (record,) = windows(windows_stage().feed(partition([twice, *frames(5)[1:], *frames(60)])))
    latency = record.metrics["execution_latency_ms"]
    assert latency.count[0] == 2
    assert (latency.mean[0], latency.variance[0], entries(latency.slope)[0]) == (2.0, 1.0, None)


def test_the_watermark_waits_for_the_slowest_companion() -> None:
    stage = windows_stage()
    log = [one for step in range(0, 200, 10) for one in frames(step)]
    fast = [one for one in log if one.source != MODEL]
    slow = [one for one in log if one.source == MODEL]
    assert not stage.feed(partition(fast))
    produced = stage.feed(partition(slow, first=len(fast)))
    assert [record.start for record in windows(produced)] == [0, 50, 100]
    assert all(record.frames == 15 for record in windows(produced))


def test_without_companions_the_sources_seen_decide() -> None:
    log = [signal(KERNEL, step, layers=["a"], metrics={"x": [1.0]}, companions=[]) for step in (0, 50)]
    assert [record.start for record in windows(windows_stage().feed(partition(log)))] == [0]
    only_errors = [signal(ERROR_RECOVERY.name, step, companions=[]) for step in (0, 50, 100)]
    assert not windows_stage().feed(partition(only_errors))  # errors are sporadic: they do not show how far the run is


def test_delay_and_grace_keep_a_window_open_longer() -> None:
    for fields in ({"delay": 20}, {"grace": 20}, {"delay": 10, "grace": 10}):
        stage = windows_stage(**fields)
        assert not stage.feed(partition([*frames(0), *frames(60)]))
        (record,) = windows(stage.feed(partition([*frames(49), *frames(70)], first=6)))
        assert record.frames == 6, fields


def test_late_signals_are_rejected_with_the_reason() -> None:
    stage = windows_stage()
    late = signal(ERROR_RECOVERY.name, 20, {"recovery_errors": [1.0]}, layers=["a"], companions=[])
    produced = stage.feed(partition([*frames(0), *frames(50), late]))
    assert len(outputs(produced)) == 1
    (rejected,) = rejects(produced)
    assert rejected.late
    assert rejected.source.record is late
    assert rejected.reason == "step 20 is late: the run's windows up to step 50 were final"
    assert stage.counts["late"] == 1


def test_an_empty_window_is_not_emitted_but_is_final() -> None:
    stage = windows_stage()
    produced = stage.feed(partition([*frames(0), *frames(150), signal(CACHE_HIT_RATES.name, 60, companions=[])]))
    assert [record.start for record in windows(produced)] == [0]
    assert rejects(produced)[0].late


def test_repeats_count_once_in_open_and_in_closed_windows() -> None:
    log = [*frames(0), *frames(0), *frames(50), *frames(0), *frames(50)]
    stage = windows_stage()
    produced = stage.feed(partition(log))
    assert not rejects(produced)
    assert windows(produced)[0].frames == 3
    assert stage.counts["repeated"] == 9
    assert stage.flush()[0].record.frames == 3


def test_last_frames_of_all_companions_close_everything() -> None:
    stage = windows_stage()
    log = [*frames(0), *frames(40), *frames(70), *frames(70, final=True)]
    assert [record.start for record in windows(stage.feed(partition(log[:-1])))] == [0]
    (record,) = windows(stage.feed(partition(log[-1:], first=len(log) - 1)))
    assert (record.start, record.final, record.frames) == (50, True, 6)
    assert stage.open_offsets() == {}


def test_several_windows_may_close_at_the_end_and_only_the_last_is_marked_final() -> None:
    log = [*frames(0), *frames(60)[:2], *frames(120, final=True)]
    produced = windows(windows_stage().feed(partition(log)))
    assert [(record.start, record.final) for record in produced] == [(0, False), (50, False), (100, True)]


def test_event_time_clock() -> None:
    stage = windows_stage(clock="time", width=60_000)
    produced = windows(stage.feed(partition([*frames(0), *frames(20), *frames(100)])))
    (record,) = produced
    assert record.start == BEGAN_MS // 60_000 * 60_000
    assert record.clock == "time"
    assert record.metrics["execution_latency_ms"].slope[0] == pytest.approx(0.001)  # 20 a step, a step is 1,000 ms
    assert (record.first_step, record.last_step) == (0, 20)


def test_idle_runs_close_on_the_logs_own_time() -> None:
    stage = windows_stage(idle_timeout_s=30)
    stage.feed(partition([*frames(0), *frames(10)]))
    assert not stage.tick(5_000_000)  # no time has passed since the last record, by the log's clock
    assert not stage.tick(5_029_999)
    (record,) = windows(stage.tick(5_030_000))
    assert (record.start, record.frames, record.final) == (0, 6, False)
    assert stage.open_offsets() == {}
    assert not stage.tick(9_000_000)


def test_catching_up_is_not_idleness() -> None:
    stage = windows_stage(idle_timeout_s=30)
    one = [incoming(record, offset=n) for n, record in enumerate(frames(0))]
    other = [incoming(record, offset=n) for n, record in enumerate(frames(20, run_id="other"), 3)]
    stage.feed(one)
    stage.tick(0)
    stage.tick(29_000)
    stage.feed(other)  # 20 s later in the log
    assert not stage.tick(40_000)
    assert not stage.tick(49_000)
    assert [record.run_id for record in windows(stage.tick(50_000))] == ["run"]
    assert [record.run_id for record in windows(stage.tick(70_000))] == ["other"]


def test_the_end_of_a_replay_publishes_what_idleness_would_have_published() -> None:
    log = partition([*frames(0), *frames(20), *frames(60)])
    live, replayed = windows_stage(idle_timeout_s=10), windows_stage(idle_timeout_s=0)
    first, again = live.feed(log), replayed.feed(log)
    live.tick(0)
    idle = live.tick(60_000)
    assert replayed.tick(0) == replayed.tick(10**12) == ()
    ended = replayed.flush()
    assert len(outputs(idle)) == len(outputs(ended)) == 1
    assert [encode(one.record) for one in outputs([*first, *idle])] == [
        encode(one.record) for one in outputs([*again, *ended])
    ]


def test_a_last_frame_is_not_late_if_idleness_closed_its_window() -> None:
    log = partition([*frames(0), *frames(10), *frames(10, final=True), signal(ERROR_RECOVERY.name, 10, companions=[])])
    stage = windows_stage(idle_timeout_s=30)
    published = outputs(stage.feed(log[:6]))
    stage.tick(0)
    published += outputs(stage.tick(30_000))
    produced = stage.feed(log[6:])
    (last,) = outputs(produced)
    assert (last.record.start, last.record.final, last.record.frames, last.record.last_step) == (50, True, 3, 10)
    assert [one.source.offset for one in rejects(produced)] == [9]
    # A restart that reads everything again publishes nothing new and rejects the same straggler.
    again = windows_stage(idle_timeout_s=30)
    again.restore(prior_outputs([*published, last]))
    produced = again.feed(log)
    assert not outputs(produced)
    assert [one.source.offset for one in rejects(produced)] == [9]
    assert again.open_offsets() == {}
    # A restart without the last window among its prior outputs rebuilds it, byte for byte.
    third = windows_stage(idle_timeout_s=30)
    third.restore(prior_outputs(published))
    (found,) = outputs(third.feed(log))
    assert encode(found.record) == encode(last.record)


def test_impossible_values_are_rejected() -> None:
    bad = signal(MODEL, 0, model_metrics={"train_loss": 1e300})
    worse = signal(KERNEL, 0, {"x": [1e40]}, layers=["a"])
    produced = windows_stage().feed(partition([bad, worse, *frames(0), *frames(50)]))
    assert [one.late for one in rejects(produced)] == [False, False]
    assert windows(produced)[0].frames == 3


def test_too_many_layers_are_rejected() -> None:
    first = signal(KERNEL, 0, layers=[f"a{n}" for n in range(6_000)])
    second = signal(KERNEL, 10, layers=[f"b{n}" for n in range(6_000)])
    (rejected,) = windows_stage().feed(partition([first, second]))
    assert "12000 layers" in rejects([rejected])[0].reason


def test_open_signals_are_bounded() -> None:
    stage = windows_stage(max_open_signals=10)
    ahead = [signal(KERNEL, step, {"x": [1.0] * 4}, layers=["a", "b", "c", "d"]) for step in (0, 50, 100)]
    assert not windows_stage(max_open_signals=12).feed(partition(ahead))
    produced = stage.feed(partition(ahead))
    assert [(record.start, record.signals) for record in windows(produced)] == [(0, 4)]
    assert stage.counts["forced"] == 1
    behind = stage.feed(partition([signal(MODEL, 0)], first=3))
    assert rejects(behind)[0].late


def test_the_oldest_window_of_the_fullest_run_closes_early() -> None:
    stage = windows_stage(max_open_signals=5)
    two = [signal(KERNEL, step, {"x": [1.0] * 2}, layers=["a", "b"], run_id="full") for step in (50, 0)]
    one = [signal(KERNEL, step, {"x": [1.0]}, layers=["a"], run_id="other") for step in (0, 50)]
    (record,) = windows(stage.feed(partition([one[0], *two, one[1]])))
    assert (record.run_id, record.start) == ("full", 0)


def test_open_runs_are_bounded() -> None:
    stage = windows_stage(max_open_runs=3)
    produced = stage.feed(partition([signal(KERNEL, 0, run_id=f"run-{n}") for n in range(5)]))
    assert [record.run_id for record in windows(produced)] == ["run-0", "run-1"]
    assert stage.open_offsets() == {SIGNALS.name: 2}


def test_open_offsets_are_those_of_the_oldest_open_signals() -> None:
    stage = windows_stage()
    assert stage.open_offsets() == {}
    log = [*frames(0), *frames(50, run_id="other"), *frames(50), *frames(100)]
    seen = []
    for one in partition(log):
        stage.feed([one])
        seen.append(stage.open_offsets()[SIGNALS.name])
    assert seen == [0] * 8 + [3] * 4


def test_bookkeeping_stays_small_while_an_old_window_stays_open() -> None:
    stage = windows_stage(width=1)
    stage.feed(partition([signal(KERNEL, 0, run_id="stuck")]))
    for step in range(3_000):
        stage.feed([incoming(signal(KERNEL, step, companions=[]), offset=1 + step)])
    assert stage.open_offsets() == {SIGNALS.name: 0}
    assert len(stage._open._first_offsets) < 1_100


def test_restored_outputs_without_sources_still_count_as_final() -> None:
    log = partition([*frames(0), *frames(50)])
    (output,) = outputs(windows_stage().feed(log))
    again = windows_stage()
    again.restore([PriorOutput("tamiyo.health.windows", 0, output.record, output.identity)])
    assert not outputs(again.feed(log))


def test_a_restored_window_without_a_source_counts_as_closed_by_the_input_before_it() -> None:
    log = partition([*frames(0), *frames(50), *frames(100)])
    first, second = outputs(windows_stage().feed(log))
    again = windows_stage()
    again.restore(
        [
            PriorOutput("tamiyo.health.windows", 0, first.record, first.identity, {SIGNALS.name: 5}),
            PriorOutput("tamiyo.health.windows", 1, second.record, second.identity),
        ]
    )
    assert again.feed(log) == []
    assert again.counts["repeated"] == 6


def test_windows_of_another_clock_are_not_final_after_a_restart() -> None:
    by_time = windows_stage(clock="time", width=60_000)
    before = outputs(by_time.feed(partition([*frames(0), *frames(100)])))
    assert len(before) == 1
    again = windows_stage()
    again.restore(prior_outputs(before))
    (record,) = windows(again.feed(partition([*frames(100), *frames(150)], first=6)))
    assert (record.clock, record.start, record.frames) == ("step", 100, 3)


def test_repeats_are_recognised_after_a_restart_and_after_the_runs_end() -> None:
    log = partition([*frames(0), *frames(50), *frames(100, final=True)])
    produced = windows_stage().feed(log)
    # A worker that lost the partition may append repeats after its successor's first outputs.
    again = [incoming(one.record, offset=len(log) + number) for number, one in enumerate(log)]
    for first in (0, len(log)):  # the restart reads everything again, or starts after the committed offset
        restarted = windows_stage()
        restarted.restore(prior_outputs(outputs(produced)))
        assert restarted.feed([*log[first:], *again]) == []
        assert restarted.counts["repeated"] == len(log) - first + len(again)
    stranger = incoming(signal(KERNEL, 20), offset=2 * len(log))
    assert [each.late for each in rejects(restarted.feed([stranger]))] == [True]


@pytest.mark.parametrize("jump_s", [3_600, -3_600])
def test_no_window_closes_early_because_a_clock_was_set(jump_s: int) -> None:
    """The process that publishes signals is started while its clock is wrong, and again when it is right."""
    stage = windows_stage(idle_timeout_s=30)
    stage.backlog = 0
    offset = 0
    for step, ahead_s in ((0, 0), (10, jump_s), (20, jump_s), (30, 0), (40, 0)):
        for run_id in ("run", "other"):
            stamped = [incoming(each, offset=offset + n, timestamp_ms=each.time_ms + 1000 * ahead_s)
                       for n, each in enumerate(frames(step, run_id=run_id))]  # fmt: skip
            offset += len(stamped)
            assert stage.feed(stamped) == []
            assert not stage.tick(1000 * step + 500)
    closed = windows(stage.tick(40_500 + 30_000 + SLACK_MS))
    assert [(each.run_id, each.frames) for each in closed] == [("run", 15), ("other", 15)]
