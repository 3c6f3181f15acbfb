"""The frames of a run: when they are published and what they contain."""

import math
import time
from typing import Any

import pytest
import torch

from tamiyo.host._sampling.frames import COMPANIONS
from tamiyo.schemas.telemetry import CacheHitRates, ErrorRecoveryEvent, KernelPerformance, LayerHealth, ModelPerformance
from tamiyo.schemas.topics import (
    CACHE_HIT_RATES,
    ERROR_RECOVERY,
    KERNEL_PERFORMANCE,
    LAYER_HEALTH,
    MODEL_PERFORMANCE,
)
from tests.support.layers import FaultyKernel
from tests.support.runs import RUN, Run, run


@pytest.fixture
def trained() -> Run:
    """Nine steps, sampled at every second, and the end."""
    made = run(cache_interval=4)
    made.train(9)
    made.handle.close()
    assert made.handle.stats.errors == 0
    return made


def frames(
    of: Run, *, final: bool = False
) -> tuple[list[KernelPerformance], list[LayerHealth], list[ModelPerformance]]:
    found = [of.records(topic) for topic in (KERNEL_PERFORMANCE, LAYER_HEALTH, MODEL_PERFORMANCE)]
    return tuple([f for f in column if f.final is final] for column in found)  # type: ignore[return-value]


def test_a_sampled_step_has_a_frame_on_each_companion(trained: Run) -> None:
    for column in frames(trained):
        assert [frame.step for frame in column] == [2, 4, 6, 8]
        assert {tuple(frame.companions) for frame in column} == {tuple(COMPANIONS)}
        assert {frame.run_id for frame in column} == {RUN}
    for together in zip(*frames(trained), strict=True):
        assert len({frame.time_ms for frame in together}) == 1


def test_the_run_ends_with_a_final_frame_on_each_companion(trained: Run) -> None:
    for column in frames(trained, final=True):
        assert [frame.step for frame in column] == [9]
    performance, health, model = (column[0] for column in frames(trained, final=True))
    assert (performance.layer_id, health.layer_id) == ([], [])
    assert model.train_loss == pytest.approx(trained.losses[-1])
    assert trained.transport.closed


def test_frames_contain_what_was_measured(trained: Run) -> None:
    performance, health, model = (column[0] for column in frames(trained))
    assert performance.layer_id == health.layer_id == ["0", "3", "5"]
    # two training steps, and no other forward pass
    assert performance.total_executions == [2, 2, 2]
    assert performance.error_count == [0, 0, 0]
    assert performance.cache_hit_rate == [1.0, 1.0, 1.0]
    assert all(latency > 0 for latency in performance.execution_latency_ms)
    assert all(variance > 0 for variance in performance.activation_variance)
    assert health.parameters == [21, 52, 10]
    assert health.kernel_parameters == [0, 0, 0]
    assert (health.dormant_seeds, health.active_seeds) == ([4, 4, 4], [0, 0, 0])
    assert health.learning_rate_scale == [1.0, 1.0, 1.0]
    assert health.contribution == [None, None, None]
    assert all(norm > 0 for norm in health.gradient_norm)
    assert all(0 < ratio < 1 for ratio in health.update_ratio)
    assert model.train_loss == pytest.approx(sum(trained.losses[:2]) / 2)
    assert (model.parameters, model.base_parameters) == (83, 83)
    # parameters, gradients, two moments; and a step counter each for six tensors
    assert model.memory_bytes == 83 * 4 * 4 + 6 * 4
    assert model.steps_since_adaptation is None
    assert (model.train_accuracy, model.validation_loss) == (None, None)
    assert frames(trained)[2][1].throughput > 0
    assert frames(trained)[2][1].step_time_ms > 0


def test_growth_scores_come_at_their_own_interval(trained: Run) -> None:
    measured = [frame.step for frame in frames(trained)[1] if frame.growth_score[0] is not None]
    assert measured == [4, 8]


def test_the_cache_has_a_frame_without_companions(trained: Run) -> None:
    found: list[CacheHitRates] = trained.records(CACHE_HIT_RATES)
    assert [(f.step, f.hits, f.misses, f.hit_rate, f.companions) for f in found] == [
        (4, 0, 0, 1.0, []),
        (8, 0, 0, 1.0, []),
    ]
    assert found[0].capacity == 64


def test_a_validation_goes_into_the_next_frame_and_is_not_overhead() -> None:
    made = run()
    made.train(2)
    before = made.handle.stats

    def validation() -> tuple[float, float]:
        time.sleep(0.2)
        return 0.75, 0.5

    assert made.handle.validate(validation) == (0.75, 0.5)
    after = made.handle.stats
    assert after.sdk_seconds - before.sdk_seconds < 0.1
    assert after.training_seconds - before.training_seconds < 0.1
    made.train(4)
    made.handle.close()
    model = frames(made)[2]
    assert [(f.validation_loss, f.validation_accuracy) for f in model] == [(None, None), (0.75, 0.5), (None, None)]


def test_epoch_and_accuracy_are_the_loops() -> None:
    made = run(sample_interval=1)
    made.handle.epoch = 3
    assert made.handle.sampling
    made.handle.step(loss=1.0, accuracy=torch.tensor(0.25), samples=10)
    made.handle.close()
    model = frames(made)[2][0]
    assert (model.epoch, model.train_accuracy, model.train_loss) == (3, 0.25, 1.0)


def test_contributions_and_seeds_show_in_the_frames() -> None:
    made = run()
    made.train(2)
    made.load()
    made.train(6)
    made.handle.close()
    health, model = frames(made)[1:]
    assert [f.contribution[0] is None for f in health] == [True, False, False, False]
    assert [f.contribution[1] for f in health] == [None] * 4
    assert [len(f.kernel_latency_ms) for f in health] == [0, 3, 3, 3]  # empty: nothing was measured
    assert all(f.kernel_latency_ms[0] is not None for f in health[1:])
    assert [f.kernel_latency_ms[1] for f in health[1:]] == [0.0, 0.0, 0.0]  # no kernel, so nothing is added
    assert all(f.base_latency_ms[0] > 0 for f in health[1:])
    assert [f.active_seeds[0] for f in health] == [0, 1, 1, 1]
    assert [f.kernel_load[0] for f in health] == [0.0, 0.25, 0.25, 0.25]
    assert [f.alpha[0] for f in health] == [0.0, 0.25, 0.75, 1.0]  # loaded after step 3, four steps of ramp
    added = made.layer().kernel_parameters
    assert [f.parameters for f in model] == [83, 83 + added, 83 + added, 83 + added]
    assert [f.steps_since_adaptation for f in model] == [None, 1, 3, 5]


def test_a_failing_kernel_is_published_and_training_continues() -> None:
    made = run()
    layer = made.layer("3")
    faulty = FaultyKernel(4)
    layer.load_kernel(faulty, kernel_id="ab" * 4, blueprint="bottleneck", step=0)
    faulty.faults = 1
    made.train(4)
    made.handle.close()
    events: list[ErrorRecoveryEvent] = made.records(ERROR_RECOVERY)
    assert [(e.layer_id, e.error_type, e.strategy, e.success, e.companions) for e in events] == [
        ("3", "RuntimeError", "retry", True, [])
    ]
    assert [frame.error_count for frame in frames(made)[0]] == [[0, 1, 0], [0, 0, 0]]
    assert all(math.isfinite(loss) for loss in made.losses)


def test_a_diverged_run_still_has_frames() -> None:
    made = run()
    made.handle.step(loss=float("nan"))
    made.handle.step(loss=torch.tensor(float("inf")))
    made.handle.close()
    assert [f.train_loss for f in frames(made)[2]] == [1e6]
    assert frames(made)[0][0].layer_id == []


@pytest.mark.parametrize("loss", [None, "0.5", torch.empty(0), [0.5, None]])
def test_a_step_without_a_loss_still_has_a_frame(loss: Any, caplog: pytest.LogCaptureFixture) -> None:
    made = run()
    made.handle.step(loss=1.5)
    for _ in range(5):
        made.handle.step(loss=loss)
    made.handle.close()
    assert [f.train_loss for f in frames(made)[2]] == [1.5, 1.5, 1.5]
    assert made.handle.stats.errors == 5
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
