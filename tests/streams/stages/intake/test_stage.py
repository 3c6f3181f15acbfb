"""Intake: telemetry frames in, health signals out."""

from typing import Any

import numpy as np
import pytest

from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.columns import entries
from tamiyo.schemas.identity import identity
from tamiyo.schemas.topics import CACHE_HIT_RATES, ERROR_RECOVERY, KERNEL_PERFORMANCE, LAYER_HEALTH, MODEL_PERFORMANCE
from tamiyo.streams.settings import IntakeSettings
from tamiyo.streams.stages.intake.anomaly import HIGHEST
from tamiyo.streams.stages.intake.frame_metrics import LARGEST, MEASURED, STATE
from tamiyo.streams.stages.intake.stage import IntakeStage
from tests.support.telemetry import (
    cache_hit_rates,
    error_recovery,
    incoming,
    kernel_performance,
    layer_health,
    model_performance,
    outputs,
    partition,
    prior_outputs,
    rejects,
)


def stage(**settings: Any) -> IntakeStage:
    return IntakeStage(0, IntakeSettings(**settings), {})


def test_kernel_performance_by_hand() -> None:
    frame = kernel_performance(10, [5.0, 2.5], epoch=2, error_count=[0, 4], total_executions=[100, 100])
    one = incoming(frame, KERNEL_PERFORMANCE.name, 7)
    (output,) = outputs(stage().feed([one]))
    record = output.record
    assert output.source is one
    assert output.identity == record.signal_id == identity("signal", "run", KERNEL_PERFORMANCE.name, 10)
    assert (record.run_id, record.source, record.step, record.epoch) == ("run", KERNEL_PERFORMANCE.name, 10, 2)
    assert (record.time_ms, record.companions, record.final) == (frame.time_ms, frame.companions, False)
    assert record.layer_id == ["layer.0", "layer.1"]
    assert entries(record.metrics["health"]) == pytest.approx([0.8, 0.4 * 0.75 + 0.4 * 0.8 + 0.2])
    assert entries(record.metrics["execution_latency_ms"]) == [5.0, 2.5]
    assert entries(record.metrics["avg_correlation"]) == [0.5, 0.5]
    assert set(record.metrics) == {
        *("execution_latency_ms", "cache_hit_rate", "error_count", "total_executions", "activation_variance"),
        *("dead_neuron_ratio", "avg_correlation", "health"),
    }
    assert record.priority.tolist() == [0.0, HIGHEST]  # an error has the highest priority
    assert record.survival.tolist() == [1.0, 1.0]
    assert (record.shed, record.filtered, record.model_metrics) == (0, 0, {})
    assert decode(encode(record), type(record)) == record


def test_layer_health_keeps_every_column_and_null() -> None:
    frame = layer_health(10, growth_score=[None, 0.5])
    (output,) = outputs(stage().feed(partition([frame], LAYER_HEALTH.name)))
    assert set(output.record.metrics) == {*MEASURED, *STATE}
    assert entries(output.record.metrics["growth_score"]) == [None, 0.5]
    assert entries(output.record.metrics["dormant_seeds"]) == [3.0, 3.0]


def test_a_column_that_is_measured_now_and_then_is_a_metric_only_where_it_was_measured() -> None:
    frame = layer_health(10, kernel_latency_ms=[0.25, None])
    (output,) = outputs(stage().feed(partition([frame], LAYER_HEALTH.name)))
    assert set(output.record.metrics) == {*MEASURED, *STATE, "kernel_latency_ms"}
    assert entries(output.record.metrics["kernel_latency_ms"]) == [0.25, None]
    (output,) = outputs(stage().feed(partition([layer_health(10, twin_gain=[None, None])], LAYER_HEALTH.name)))
    assert set(output.record.metrics) == {*MEASURED, *STATE}


def test_the_result_of_a_shadow_twin_is_a_metric_that_overload_does_not_shed() -> None:
    frame = layer_health(10, twin_gain=[None, -0.5], twin_steps=[None, 300], twin_probability=[None, 0.25])
    (output,) = outputs(stage(minimum_priority=2.0).feed(partition([frame], LAYER_HEALTH.name)))
    found = {name: entries(output.record.metrics[name]) for name in ("twin_gain", "twin_steps", "twin_probability")}
    assert found == {"twin_gain": [None, -0.5], "twin_steps": [None, 300.0], "twin_probability": [None, 0.25]}


def test_no_latency_in_pairs_may_be_beyond_what_windows_accept() -> None:
    frame = layer_health(10, base_latency_ms=[None, 1e300])
    (reject,) = rejects(stage().feed(partition([frame], LAYER_HEALTH.name)))
    assert "base_latency_ms" in reject.reason


def test_a_layer_with_a_failing_seed_has_the_highest_priority() -> None:
    (output,) = outputs(stage().feed(partition([layer_health(10, error_seeds=[0, 1])], LAYER_HEALTH.name)))
    assert output.record.priority.tolist() == [0.0, HIGHEST]


def test_a_recovery_time_is_bounded_to_what_windows_accept() -> None:
    (output,) = outputs(stage().feed(partition([error_recovery(10, recovery_time_ms=1e300)], ERROR_RECOVERY.name)))
    assert entries(output.record.metrics["recovery_time_ms"]) == [LARGEST]


def test_model_and_cache_metrics() -> None:
    frame = model_performance(10, 0.5, validation_loss=0.75, parameters=574)
    (model,) = outputs(stage().feed(partition([frame], MODEL_PERFORMANCE.name)))
    assert model.record.model_metrics["train_loss"] == 0.5
    assert model.record.model_metrics["validation_loss"] == 0.75
    assert model.record.model_metrics["parameters"] == 574.0
    assert "validation_accuracy" not in model.record.model_metrics  # null is not zero
    assert model.record.layer_id == []
    (cache,) = outputs(stage().feed(partition([cache_hit_rates(10)], CACHE_HIT_RATES.name)))
    assert cache.record.model_metrics == {"cache_hit_rate": 0.75, "cache_entries": 4.0, "cache_evictions": 2.0}


def test_errors_become_signals_one_each() -> None:
    events = [error_recovery(10), error_recovery(10, success=False)]
    first, second = outputs(stage().feed(partition(events, ERROR_RECOVERY.name, first=5)))
    recovered = {name: entries(column) for name, column in first.record.metrics.items()}
    assert recovered == {"recovery_errors": [1.0], "recovery_success": [1.0], "recovery_time_ms": [4.0]}
    assert entries(second.record.metrics["recovery_success"]) == [0.0]
    assert first.record.priority.tolist() == [HIGHEST]
    assert first.identity == identity("signal", "run", ERROR_RECOVERY.name, 10, events[0].model_dump_json())
    assert first.identity != second.identity
    # In a replay an error may have another offset; its id stays the same.
    elsewhere = outputs(stage().feed(partition(events, ERROR_RECOVERY.name, first=70)))
    assert [each.identity for each in elsewhere] == [first.identity, second.identity]


def test_repeats_are_dropped_and_counted_but_a_last_frame_is_no_repeat() -> None:
    intake = stage()
    produced = intake.feed(
        partition(
            [
                kernel_performance(10),
                kernel_performance(10),
                kernel_performance(10, run_id="other"),
                kernel_performance(10, final=True),
                kernel_performance(10, final=True),
            ],
            KERNEL_PERFORMANCE.name,
        )
    )
    assert [one.record.run_id for one in outputs(produced)] == ["run", "other", "run"]
    assert [one.record.final for one in outputs(produced)] == [False, False, True]
    assert not rejects(produced)
    assert intake.counts["repeated"] == 2


def test_what_was_published_before_a_restart_is_not_published_again() -> None:
    frames = partition([kernel_performance(step) for step in range(10)], KERNEL_PERFORMANCE.name)
    before = outputs(stage().feed(frames))
    again = stage()
    again.restore(prior_outputs(before[:6]))
    assert [one.record.step for one in outputs(again.feed(frames))] == [6, 7, 8, 9]


@pytest.mark.parametrize(
    ("fields", "timestamp", "word"),
    [
        ({"time_ms": 1_700_000_000_000 + 86_400_001}, 1_700_000_000_000, "beyond the record's arrival"),
        ({"step": 10**9 + 1}, None, "beyond the largest expected"),
        ({"companions": ["telemetry.unknown"]}, None, "no stage reads"),
        ({"execution_latency_ms": [1.0, 1e40]}, None, "largest that can be measured"),
    ],
)
def test_bad_frames_are_rejected_with_their_reason_and_the_next_are_processed(
    fields: dict[str, Any], timestamp: int | None, word: str
) -> None:
    bad = incoming(kernel_performance(10, **fields), KERNEL_PERFORMANCE.name, 0, timestamp)
    good = incoming(kernel_performance(20), KERNEL_PERFORMANCE.name, 1)
    intake = stage()
    first, second = intake.feed([bad, good])
    assert rejects([first])[0].source is bad
    assert word in rejects([first])[0].reason
    assert not rejects([first])[0].late
    assert outputs([second])[0].record.step == 20
    assert intake.counts["rejected"] == 1


@pytest.mark.parametrize("loss", [1e300, -1e300])
def test_a_loss_beyond_any_measurement_is_rejected(loss: float) -> None:
    (produced,) = stage().feed(partition([model_performance(1, loss)], MODEL_PERFORMANCE.name))
    assert "train_loss" in rejects([produced])[0].reason


def test_a_day_ahead_is_allowed_and_a_record_without_a_timestamp_is_not_checked() -> None:
    day = incoming(
        kernel_performance(1, time_ms=1_700_000_000_000 + 86_400_000), KERNEL_PERFORMANCE.name, 0, 1_700_000_000_000
    )
    none = incoming(kernel_performance(2, time_ms=4_000_000_000_000), KERNEL_PERFORMANCE.name, 1, 0)
    assert len(outputs(stage().feed([day, none]))) == 2


def test_the_largest_step_is_still_accepted() -> None:
    frames = partition([kernel_performance(5), kernel_performance(6)], KERNEL_PERFORMANCE.name)
    assert [output.record.step for output in outputs(stage(max_step=5).feed(frames))] == [5]


def test_an_unusual_layer_has_a_high_priority() -> None:
    intake = stage(deviation_minimum=8)
    rng = np.random.default_rng(0)
    frames = [kernel_performance(step, (1 + 0.1 * rng.random(3)).tolist()) for step in range(40)]
    intake.feed(partition(frames, KERNEL_PERFORMANCE.name))
    spike = kernel_performance(41, [1.05, 5.0, 1.05])
    (output,) = outputs(intake.feed([incoming(spike, KERNEL_PERFORMANCE.name, 41)]))
    assert output.record.priority[1] > 20
    assert output.record.priority[0] < 5
    assert output.record.priority[2] < 5


def test_priority_does_not_depend_on_how_sources_or_batches_mix() -> None:
    rng = np.random.default_rng(1)
    execution = [kernel_performance(step, rng.random(2).tolist()) for step in range(30)]
    learning = [layer_health(step, rng.random(2).tolist()) for step in range(30)]
    one, two = partition(execution, KERNEL_PERFORMANCE.name), partition(learning, LAYER_HEALTH.name)
    apart = outputs(stage().feed([*one, *two]))
    intake = stage()
    mixed = [output for pair in zip(two, one, strict=True) for output in outputs(intake.feed(pair))]
    assert {o.identity: encode(o.record) for o in apart} == {o.identity: encode(o.record) for o in mixed}


def test_the_filter_drops_by_layer_and_by_priority_but_never_errors_or_state() -> None:
    intake = stage(ignored_layers=["layer.0"])
    (execution,) = outputs(intake.feed(partition([kernel_performance(1)], KERNEL_PERFORMANCE.name)))
    assert execution.record.layer_id == ["layer.1"]
    assert entries(execution.record.metrics["execution_latency_ms"]) == [2.0]
    assert (execution.record.filtered, execution.record.shed) == (1, 0)
    (failing,) = outputs(intake.feed(partition([kernel_performance(2, error_count=[1, 0])], KERNEL_PERFORMANCE.name)))
    assert failing.record.layer_id == ["layer.0", "layer.1"]
    (learning,) = outputs(intake.feed(partition([layer_health(1)], LAYER_HEALTH.name)))
    assert learning.record.layer_id == ["layer.0", "layer.1"]
    assert entries(learning.record.metrics["gradient_norm"]) == [None, 0.2]
    assert entries(learning.record.metrics["active_seeds"]) == [1.0, 1.0]
    (model,) = outputs(intake.feed(partition([model_performance(1)], MODEL_PERFORMANCE.name)))
    assert model.record.model_metrics["train_loss"] == 1.0
    quiet = stage(minimum_priority=2.0)
    (ordinary,) = outputs(quiet.feed(partition([kernel_performance(1)], KERNEL_PERFORMANCE.name)))
    assert (ordinary.record.layer_id, ordinary.record.filtered) == ([], 2)
    assert quiet.counts["filtered"] == 2
    assert quiet.counts["processed"] == 0


def overloaded(**settings: Any) -> tuple[IntakeStage, list[Any]]:
    intake = stage(buffer_signals=300, batch_signals=100, deviation_minimum=4, deviation_frames=16, **settings)
    rng = np.random.default_rng(2)
    usual = [kernel_performance(step, (1 + 0.1 * rng.random(10)).tolist()) for step in range(20)]
    intake.feed(partition(usual, KERNEL_PERFORMANCE.name))
    frames = []
    for step in range(20, 120):
        latency = 1 + 0.1 * rng.random(10)
        latency[3] = 4.0 if step % 10 == 0 else latency[3]
        errors = [0] * 9 + [int(step % 25 == 0)]
        frames.append(kernel_performance(step, latency.tolist(), error_count=errors, final=step == 119))
    return intake, partition(frames, KERNEL_PERFORMANCE.name, first=20)


def test_overload_sheds_the_lowest_priority_with_known_probability() -> None:
    intake, frames = overloaded()
    produced = outputs(intake.feed(frames))
    assert len(produced) == 100  # every frame still has its signal
    kept = sum(len(one.record.layer_id) for one in produced)
    assert kept + sum(one.record.shed for one in produced) == 1000
    assert kept == pytest.approx(300, abs=45)  # three standard deviations of Poisson sampling
    for one in produced:
        step = one.record.step
        if step % 25 == 0:
            assert "layer.9" in one.record.layer_id
        if step % 10 == 0:
            assert "layer.3" in one.record.layer_id
            assert one.record.survival[one.record.layer_id.index("layer.3")] == 1.0
    assert len(produced[-1].record.layer_id) == 10  # nothing of the last frame is shed
    assert produced[-1].record.final
    ordinary = [
        s for one in produced[:-1] for s, p in zip(one.record.survival, one.record.priority, strict=True) if p < 1
    ]
    assert 0 < max(ordinary) < 0.9
    # Weighted by 1 / survival, the kept layer-signals estimate how many there were.
    estimate = sum(1 / s for one in produced for s in one.record.survival)
    assert estimate == pytest.approx(1000, rel=0.15)
    assert intake.counts["shed"] == 1000 - kept


def test_the_filter_works_under_overload_too_and_is_not_counted_as_shedding() -> None:
    intake, frames = overloaded(ignored_layers=["layer.0"])
    produced = [output.record for output in outputs(intake.feed(frames))]
    assert not any("layer.0" in record.layer_id for record in produced)
    assert all(record.filtered == 1 for record in produced)
    assert all(len(record.layer_id) + record.shed == 9 for record in produced)
    assert sum(record.shed for record in produced) > 500


def test_shedding_is_reproducible() -> None:
    first, frames = overloaded()
    second, _ = overloaded()
    assert [encode(o.record) for o in outputs(first.feed(frames))] == [
        encode(o.record) for o in outputs(second.feed(frames))
    ]


def test_a_backlog_counts_and_a_small_batch_is_never_shed() -> None:
    intake, frames = overloaded()
    intake.backlog = 10_000
    assert sum(one.record.shed for one in outputs(intake.feed(frames[:10]))) == 0  # 100 layer-signals
    assert sum(one.record.shed for one in outputs(intake.feed(frames[10:30]))) > 50  # 200, of which 100 may stay


def test_overload_never_sheds_state_model_metrics_or_errors() -> None:
    intake = stage(buffer_signals=10, batch_signals=0)
    learning = partition([layer_health(step, [0.1] * 10) for step in range(20)], LAYER_HEALTH.name)
    model = partition([model_performance(step) for step in range(20)], MODEL_PERFORMANCE.name)
    errors = partition([error_recovery(step) for step in range(20)], ERROR_RECOVERY.name)
    produced = outputs(intake.feed([*learning, *model, *errors]))
    assert len(produced) == 60
    for one in produced[:20]:
        assert entries(one.record.metrics["dormant_seeds"]) == [3.0] * 10
        assert one.record.companions
    assert sum(one.record.shed for one in produced[:20]) == 200
    assert all(np.isnan(one.record.metrics["gradient_norm"]).all() for one in produced[:20])
    assert all(one.record.model_metrics["train_loss"] == 1.0 for one in produced[20:40])
    assert all(one.record.layer_id == ["layer.0"] for one in produced[40:])


def test_state_is_bounded_over_many_runs() -> None:
    intake = stage(max_runs=10, deviation_cells=4_000, max_remembered=5)
    for number in range(50):
        frames = [kernel_performance(step, run_id=f"run-{number}") for step in range(8)]
        assert len(outputs(intake.feed(partition(frames, KERNEL_PERFORMANCE.name)))) == 8
    assert len(intake._seen) == 10
    assert all(len(seen) == 5 for seen in intake._seen.values())
    assert 0 < intake._deviations.cells <= 4_000


def test_a_runs_deviation_is_forgotten_with_its_last_frame() -> None:
    intake = stage()
    intake.feed(partition([kernel_performance(step) for step in range(8)], KERNEL_PERFORMANCE.name))
    assert intake._deviations.cells > 0
    intake.feed([incoming(kernel_performance(8, final=True), KERNEL_PERFORMANCE.name, 8)])
    assert (intake._deviations.cells, len(intake._deviations)) == (0, 0)
    assert outputs(intake.feed([incoming(kernel_performance(3), KERNEL_PERFORMANCE.name, 9)])) == []


def test_no_frame_is_held() -> None:
    intake = stage()
    intake.feed(partition([kernel_performance(1)], KERNEL_PERFORMANCE.name))
    assert intake.open_offsets() == {}
    assert list(intake.tick(10**13)) == []
    assert list(intake.feed([])) == []


def test_a_frame_without_layers_gives_a_signal() -> None:
    (output,) = outputs(stage().feed(partition([kernel_performance(1, [])], KERNEL_PERFORMANCE.name)))
    assert output.record.layer_id == []


def test_the_oldest_frames_of_a_run_are_forgotten_first() -> None:
    intake = stage(max_remembered=2)
    frames = partition([kernel_performance(step) for step in (1, 2, 3)], KERNEL_PERFORMANCE.name)
    intake.feed(frames)
    assert outputs(intake.feed(frames[1:])) == []
    assert [output.record.step for output in outputs(intake.feed(frames[:1]))] == [1]


@pytest.mark.parametrize("runs", [("over", "lives"), ("lives", "over")])
def test_a_run_that_has_been_idle_for_long_is_forgotten_and_others_are_not(runs: tuple[str, str]) -> None:
    intake = stage(idle_timeout_s=60)
    first = [incoming(kernel_performance(1, run_id=run), KERNEL_PERFORMANCE.name) for run in runs]
    assert len(outputs(intake.feed(first))) == 2
    intake.tick(1_000_000)
    intake.tick(1_059_000)
    intake.feed([incoming(kernel_performance(2, run_id="lives"), KERNEL_PERFORMANCE.name)])
    assert outputs(intake.feed(first)) == []  # repeats, which still count as activity
    intake.tick(1_100_000)
    intake.feed([incoming(kernel_performance(3, run_id="lives"), KERNEL_PERFORMANCE.name)])

    intake.tick(1_119_000)

    assert [one.record.run_id for one in outputs(intake.feed(first))] == ["over"]
