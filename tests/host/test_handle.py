"""A run from its first step to its end: adaptations, failures of everything but training, resuming, Kafka."""

import time
from contextlib import closing
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tamiyo.host import KafkaTransport, attach
from tamiyo.host._layers.seed import SeedState
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, OutcomeStatus
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.telemetry import LayerHealth
from tamiyo.schemas.topics import (
    DECISIONS,
    KERNEL_PERFORMANCE,
    KERNELS,
    LAYER_HEALTH,
    OUTCOMES,
    TOPOLOGY,
)
from tamiyo.streams.admin.topics import Topics
from tests.support.kafka_log import KafkaLog
from tests.support.layers import attached_layer
from tests.support.runs import RUN, compiled, data, decision, network, run, settings


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


def test_a_grown_model_keeps_its_kernels_when_it_is_detached() -> None:
    made = run()
    made.load()
    made.train(3)
    made.handle.detach()
    assert len(attached_layer(made.model, "0").kernels) == 1
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
        layer = attached_layer(model, "0")
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
