"""A run from its first step to its end: frames, adaptations, failures of everything but training."""

import math
import time
from contextlib import closing
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tamiyo.host import KafkaTransport, attach
from tamiyo.host.layers.kasmina_layer import KasminaLayer
from tamiyo.host.layers.seed import SeedState
from tamiyo.host.sampling.frames import COMPANIONS
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, OutcomeStatus
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.telemetry import CacheHitRates, ErrorRecoveryEvent, KernelPerformance, LayerHealth, ModelPerformance
from tamiyo.schemas.topics import (
    CACHE_HIT_RATES,
    DECISIONS,
    ERROR_RECOVERY,
    KERNEL_PERFORMANCE,
    KERNELS,
    LAYER_HEALTH,
    MODEL_PERFORMANCE,
    OUTCOMES,
    TOPOLOGY,
)
from tamiyo.streams.admin.topics import Topics
from tests.support.kafka_log import KafkaLog
from tests.support.layers import FaultyKernel
from tests.support.runs import RUN, Run, compiled, data, decision, network, run, settings


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


def test_a_load_preserves_the_function_and_the_optimisers_state_and_then_learns() -> None:
    made = run()
    made.train(5)
    inputs = data(seed=99)[0]
    before = made.model(inputs).detach()
    moments = {p: made.optimizer.state[p]["exp_avg"].clone() for p in made.model.parameters()}
    made.load()
    made.train(1)
    (outcome,) = made.outcomes
    assert outcome.status is OutcomeStatus.EXECUTED
    after_one_step = made.model(inputs).detach()
    with made.layer().gated_off(0):
        assert torch.allclose(made.model(inputs), after_one_step, atol=1e-6)
    assert not torch.equal(before, after_one_step)  # the step itself
    assert set(moments) < set(made.model.parameters())
    made.train(6)
    with made.layer().gated_off(0):
        without = made.model(inputs).detach()
    assert not torch.allclose(without, made.model(inputs), atol=1e-6)
    assert made.layer().seeds[0].state is SeedState.ACTIVE
    made.handle.close()
    assert made.handle.stats.errors == 0


def test_contributions_and_seeds_show_in_the_frames() -> None:
    made = run()
    made.train(2)
    made.load()
    made.train(6)
    made.handle.close()
    health, model = frames(made)[1:]
    assert [f.contribution[0] is None for f in health] == [True, False, False, False]
    assert [f.contribution[1] for f in health] == [None] * 4
    assert [f.kernel_latency_ms[0] is None for f in health] == [True, False, False, False]
    assert [f.kernel_latency_ms[1] for f in health] == [None, 0.0, 0.0, 0.0]  # no kernel, so nothing is added
    assert all(f.base_latency_ms[0] > 0 for f in health[1:])
    assert [f.active_seeds[0] for f in health] == [0, 1, 1, 1]
    assert [f.kernel_load[0] for f in health] == [0.0, 0.25, 0.25, 0.25]
    assert [f.alpha[0] for f in health] == [0.0, 0.25, 0.75, 1.0]  # loaded after step 3, four steps of ramp
    added = made.layer().kernel_parameters
    assert [f.parameters for f in model] == [83, 83 + added, 83 + added, 83 + added]
    assert [f.steps_since_adaptation for f in model] == [None, 1, 3, 5]


def test_an_unloaded_kernel_leaves_model_and_optimiser() -> None:
    made = run()
    made.load()
    made.train(6)
    made.transport.decide("unload_kernel", layer="0")
    made.train(6)
    assert len(made.layer().kernels) == 0
    trained = {id(p) for group in made.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in made.model.parameters()}
    assert set(made.optimizer.state) == set(made.model.parameters())
    assert made.handle.stats.kernel_parameters == 0
    made.handle.close()


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


class FaultyTransport(MemoryTransport):
    def receive(self) -> Any:
        raise RuntimeError("out of luck")


def test_an_error_of_the_sdk_does_not_end_training(caplog: pytest.LogCaptureFixture) -> None:
    made = run(transport=FaultyTransport())
    made.train(4)
    made.handle.close()
    assert len(made.losses) == 4
    assert made.handle.stats.errors == 5
    assert "training continues" in caplog.text


class AwaitingTransport(MemoryTransport):
    awaits_decisions = True


def test_closing_refuses_open_decisions_and_waits_for_the_last_one() -> None:
    made = run(drain_s=20.0, transport=AwaitingTransport())
    made.train(3)
    made.transport.send(decision("open"))  # its kernel never arrives
    made.train(1)
    made.transport.send(decision("late", step=3), decision("last", step=4))
    started = time.monotonic()
    made.handle.close()
    assert time.monotonic() - started < 10.0
    assert [(o.status, o.reason.split(":")[0]) for o in made.outcomes] == [(OutcomeStatus.REFUSED, "run_ended")] * 3
    stats = made.handle.stats
    assert (stats.decisions, stats.refused, stats.executed, stats.failed) == (3, 3, 0, 0)


def test_nothing_happens_after_the_end() -> None:
    made = run()
    made.train(2)
    made.handle.close()
    published = made.transport.published
    made.train(4)
    made.handle.close()
    assert made.transport.published == published
    assert made.handle.stats.step == 2


def test_detach_puts_plain_layers_back_where_nothing_grew() -> None:
    made = run()
    made.load()
    made.train(3)
    made.handle.detach()
    assert isinstance(made.model.get_submodule("0"), KasminaLayer)
    assert isinstance(made.model.get_submodule("3"), nn.Linear)
    plain = made.handle.export()
    assert not any(type(module).__module__.startswith("tamiyo") for module in plain.modules())
    inputs = data()[0]
    assert torch.allclose(plain(inputs), made.model(inputs), atol=1e-6)


def test_detach_releases_the_optimiser() -> None:
    made = run()
    made.transport.decide("optimize_parameters", layer="3")
    made.train(1)
    assert len(made.optimizer._optimizer_step_pre_hooks) == 2
    made.handle.detach()
    assert len(made.optimizer._optimizer_step_pre_hooks) == len(made.optimizer._optimizer_step_post_hooks) == 0


def test_a_grown_run_resumes_from_its_state() -> None:
    first = run()
    first.load()
    first.train(3)
    first.transport.decide("optimize_parameters", layer="3")
    first.train(2)
    first.handle.close()
    saved = first.handle.state_dict()
    second = run(network(seed=7))
    second.handle.load_state_dict(saved)
    inputs = data()[0]
    assert torch.equal(second.model(inputs), first.model(inputs))
    assert second.handle.stats.step == 5
    second.losses = list(first.losses)  # the same data from here on
    second.train(3)
    assert second.records(LAYER_HEALTH)[0].learning_rate_scale == [1.0, 0.5, 1.0]
    assert second.records(LAYER_HEALTH)[0].active_seeds == [1, 0, 0]
    assert second.handle.stats.errors == 0
    second.handle.close()


def test_kernels_of_a_resumed_run_advance_on_their_ramps() -> None:
    first, second = run(ramp_steps=20), run(network(seed=7), ramp_steps=20)
    first.load()
    first.train(3)
    second.handle.load_state_dict(first.handle.state_dict())
    before = second.layer().seeds[0].alpha
    second.train(3)
    assert second.layer().seeds[0].alpha == pytest.approx(before + 3 / 20)
    assert second.handle.stats.kernel_parameters == first.handle.stats.kernel_parameters > 0
    first.handle.close()
    second.handle.close()


def test_the_context_manager_ends_the_run() -> None:
    made = run()
    with made.handle as handle:
        made.train(2)
    assert made.transport.closed
    assert handle.stats.step == 2


def test_over_kafka_a_repeated_decision_is_executed_once(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog
) -> None:
    Topics(kafka, names).touch()
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    handle = attach(
        model,
        optimizer,
        run_id=RUN,
        example_input=data(2)[0],
        settings=settings(),
        transport=KafkaTransport(kafka, names),
    )
    with closing(handle):
        decided = decision()
        layer = model.get_submodule("0")
        assert isinstance(layer, KasminaLayer)
        kafka_log.publish(DECISIONS, [decided, decided])
        kafka_log.publish(KERNELS, [compiled(decided, layer.spec)])
        for seed in range(5000):
            inputs, labels = data(seed=seed)
            loss = F.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            handle.step(loss=loss)
            if handle.stats.executed and handle.stats.repeated:
                break
    stats = handle.stats
    assert (stats.decisions, stats.repeated, stats.executed, stats.dropped_records) == (1, 1, 1, 0)
    assert (stats.connected, stats.errors) == (True, 0)
    (read,) = kafka_log.read(OUTCOMES.name)
    outcome: AdaptationOutcome = read.record(AdaptationOutcome)
    assert (outcome.decision_id, outcome.status) == (decided.decision_id, OutcomeStatus.EXECUTED)
    assert len(kafka_log.read(TOPOLOGY.name)) == 1
    health = [each.record(LayerHealth) for each in kafka_log.read(LAYER_HEALTH.name)]
    assert len(health) == len(kafka_log.read(KERNEL_PERFORMANCE.name)) == stats.step // 2 + 1
    assert [each.final for each in health] == [False] * (len(health) - 1) + [True]
    assert len({each.partition for each in (read, *kafka_log.read(TOPOLOGY.name))}) == 1
    assert kafka_log.read(DECISIONS.name)[0].record(AdaptationDecision) == decided


def test_without_a_broker_training_continues_and_drops_are_counted(names: TopicNames) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    nowhere = KafkaSettings(bootstrap_servers="127.0.0.1:1")
    with attach(
        model,
        optimizer,
        example_input=data(2)[0],
        settings=settings(connect_timeout_s=0.1, flush_timeout_s=0.2, drain_s=60.0),
        transport=KafkaTransport(nowhere, names),
    ) as handle:
        for seed in range(6):
            inputs, labels = data(seed=seed)
            loss = F.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            handle.step(loss=loss)
    # the topology, three frames at steps 2, 4 and 6, and three at the end
    assert handle.stats.dropped_records == 1 + 3 * 3 + 3
    assert (handle.stats.connected, handle.stats.errors) == (False, 0)
