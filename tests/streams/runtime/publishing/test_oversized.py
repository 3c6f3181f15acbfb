"""What is larger than a message may be: a dead dead in its place, and the flow goes on."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka.errors import (
    InvalidTimestampError,
    InvalidTopicError,
    KafkaConnectionError,
    MessageSizeTooLargeError,
    NotEnoughReplicasError,
    ProducerFenced,
    RecordListTooLargeError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
    UnsupportedVersionError,
)
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from tamiyo.schemas.client.connection import Connection
from tamiyo.schemas.errors import BrokerError, BrokerRefused, ConfigurationError
from tamiyo.schemas.kafka import HEADERS_BYTES, KafkaSettings, TopicNames
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.process.exit_codes import EXIT_CONFIG, EXIT_SOFTWARE, EXIT_TEMPFAIL
from tamiyo.streams.runtime.failures import status_of
from tamiyo.streams.runtime.restore import RestoredState
from tamiyo.streams.stages.base import Incoming, Output, Reject
from tests.streams.runtime.harness import FakeKafka, Sent, settle
from tests.streams.runtime.publishing.test_output_pipeline import PipelineHarness, incoming
from tests.support.factories import make_graph, make_topology
from tests.support.kafka_log import KafkaLog
from tests.support.pairs import NUMBERS, SUMS, number
from tests.support.workers import TOPICS, Process, enough

LIMIT = 2_000  # bytes
LARGE = LIMIT + HEADERS_BYTES
RUNS = (("a", 1), ("large", 777), ("b", 1))
MEMBERS = ["m" * 16] * 500


def large(source: Incoming | None = None, name: str = "large") -> Output:
    return Output(SUMS, number("run", 0, 1), name, source, MEMBERS)


def publish(*outputs: Output | Reject, refused: Callable[[Sent], bool] = lambda sent: False, **more: Any) -> FakeKafka:
    """Publish outputs of one call after one number was read; the broker refuses what `refused` returns True for."""
    kafka = FakeKafka(keep_back=True, **{"largest": LIMIT, **more})

    async def scene() -> None:
        harness = PipelineHarness(kafka, more.get("restored"))
        await harness.read(0)
        await harness.pipeline.publish(outputs, {})
        for _ in range(4):
            for each in kafka.sent:
                if not each.delivered.done():
                    if refused(each):
                        each.delivered.set_exception(MessageSizeTooLargeError())
                    else:
                        each.delivered.set_result(None)
            await settle()
        if harness.delivering.done():
            kafka.failed.append(harness.delivering.exception() or AssertionError("it ended"))
        kafka.gaps = [("acknowledged", each, each) for each in harness.acknowledged]
        harness.end()

    asyncio.run(scene())
    return kafka


def test_an_output_that_is_too_large_becomes_a_dead_letter_of_what_closed_it() -> None:
    kafka = publish(Output(SUMS, number("small", 0, 1), "small", incoming(0)), large(incoming(0)))
    small, dead = kafka.sent
    assert (small.topic, dead.topic) == (SUMS.name, NUMBERS.dead_letters)
    assert dead.value == b"raw"  # redriven under a greater limit, it makes the output again
    reason = dead.headers["tamiyo-reason"]
    assert reason.startswith(f"OutputTooLarge: {SUMS.name} of run run has 8,")
    assert f"TAMIYO_WORKER_MAX_MESSAGE_BYTES allows {LIMIT:,}" in reason
    assert (dead.headers["tamiyo-output"], dead.headers["tamiyo-id"]) == (SUMS.name, "large")
    assert dead.headers["tamiyo-source"] == f"{NUMBERS.name}:1:0"
    assert len(kafka.gaps) == 1  # the number is acknowledged


def test_an_output_that_time_closed_has_a_dead_letter_without_value_or_source() -> None:
    (dead,) = publish(large()).sent
    assert (dead.topic, dead.value) == (NUMBERS.dead_letters, None)
    assert "tamiyo-source" not in dead.headers
    assert dead.headers["tamiyo-output"] == SUMS.name


def test_a_reason_names_the_run_its_layers_and_what_to_change() -> None:
    graph = make_graph(topology=make_topology(30, run_id="run-7"))
    (dead,) = publish(Output(SUMS, graph, "graph", None)).sent
    assert "of run run-7 of 30 layers has " in dead.headers["tamiyo-reason"]
    assert "max.message.bytes" in dead.headers["tamiyo-reason"]


def test_a_dead_letter_that_is_too_large_itself_loses_its_value() -> None:
    source = Incoming(NUMBERS.name, 1, 0, 0, None, b"v" * LARGE, b"k" * 2 * LIMIT)
    (dead,) = publish(Reject(source, "bad")).sent
    assert (dead.topic, dead.value) == (NUMBERS.dead_letters, None)
    assert dead.headers["tamiyo-reason"] == "bad"
    assert dead.headers["tamiyo-cut"] == str(LARGE)
    assert dead.headers["tamiyo-source"] == f"{NUMBERS.name}:1:0"


def test_a_dead_letter_of_a_message_of_the_greatest_size_keeps_it() -> None:
    source = Incoming(NUMBERS.name, 1, 0, 0, None, b"v" * LIMIT, b"k")
    (dead,) = publish(Reject(source, "bad")).sent
    assert dead.value == b"v" * LIMIT


def test_a_dead_letter_of_an_output_is_cut_too_if_its_input_is_too_large() -> None:
    source = Incoming(NUMBERS.name, 1, 0, 0, None, b"v" * LARGE, b"key")
    (dead,) = publish(large(source)).sent
    assert (dead.value, dead.headers["tamiyo-cut"]) == (None, str(LARGE))
    assert dead.headers["tamiyo-output"] == SUMS.name


def test_what_the_broker_refuses_becomes_a_dead_letter() -> None:
    kafka = publish(large(incoming(0)), refused=lambda sent: sent.topic == SUMS.name, largest=10_000)
    assert [each.topic for each in kafka.sent] == [SUMS.name, NUMBERS.dead_letters]
    assert "the broker refuses it" in kafka.sent[1].headers["tamiyo-reason"]
    assert (kafka.failed, len(kafka.gaps)) == ([], 1)


def test_a_dead_letter_that_the_broker_refuses_is_cut() -> None:
    kafka = publish(large(incoming(0)), refused=lambda sent: "tamiyo-cut" not in sent.headers, largest=10_000)
    assert [(each.topic, each.value) for each in kafka.sent[1:]] == [
        (NUMBERS.dead_letters, b"raw"),
        (NUMBERS.dead_letters, None),
    ]
    assert (kafka.failed, len(kafka.gaps)) == ([], 1)


@pytest.mark.parametrize("outputs", [(large(incoming(0)),), (Reject(incoming(0), "bad"),)])
def test_a_broker_that_refuses_everything_ends_the_delivering_with_nothing_acknowledged(
    outputs: tuple[Output | Reject, ...],
) -> None:
    kafka = publish(*outputs, refused=lambda sent: True)
    assert [type(each) for each in kafka.failed] == [MessageSizeTooLargeError]
    assert kafka.gaps == []


def test_a_batch_of_several_records_that_is_refused_is_nobody_s_dead_letter() -> None:
    kafka = publish(
        large(incoming(0), "a"), large(incoming(0), "b"), refused=lambda sent: True, largest=10_000, together=2
    )
    assert [each.topic for each in kafka.sent] == [SUMS.name, SUMS.name]
    assert len(kafka.failed) == 1


def test_an_output_that_became_a_dead_letter_before_a_restart_does_not_again() -> None:
    async def scene() -> list[Sent]:
        harness = PipelineHarness(FakeKafka(largest=LIMIT), RestoredState({}, oversized={(SUMS.name, "large"): {None}}))
        await harness.pipeline.publish([large(incoming(0)), large(incoming(0), "new")], {})
        harness.end()
        return harness.kafka.sent

    assert [each.headers["tamiyo-id"] for each in asyncio.run(scene())] == ["new"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MessageSizeTooLargeError(), EXIT_CONFIG),
        (RecordListTooLargeError(), EXIT_CONFIG),
        (InvalidTimestampError(), EXIT_CONFIG),
        (TopicAuthorizationFailedError(), EXIT_CONFIG),
        (InvalidTopicError(), EXIT_CONFIG),
        (UnsupportedVersionError(), EXIT_CONFIG),
        (BrokerRefused("wrong password"), EXIT_CONFIG),
        (ConfigurationError("a certificate has gone"), EXIT_CONFIG),
        (KafkaConnectionError(), EXIT_TEMPFAIL),
        (RequestTimedOutError(), EXIT_TEMPFAIL),
        (NotEnoughReplicasError(), EXIT_TEMPFAIL),
        (ProducerFenced(), EXIT_TEMPFAIL),
        (BrokerError("away"), EXIT_TEMPFAIL),
        (OSError("disk full"), EXIT_TEMPFAIL),
        (KeyError("a bug"), EXIT_SOFTWARE),
    ],
)
def test_errors_of_kafka_are_distinguished(error: Exception, status: int) -> None:
    assert status_of(error) == status


@pytest.mark.flow
def test_one_large_record_does_not_stop_the_worker(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, start: Callable[..., Process]
) -> None:
    Topics(kafka, names, TOPICS).touch()
    worker = start(kafka, max_message_bytes=4_000)
    kafka_log.publish_bytes(NUMBERS, [(b"run", b"?" * 80_000), (b"k" * 80_000, b"?")])
    kafka_log.publish(NUMBERS, [number(run, step, value) for run, value in RUNS for step in (0, 1)])
    kafka_log.wait_for(SUMS.name, enough(2))
    dead = kafka_log.wait_for(NUMBERS.dead_letters, lambda found: len(found) == 3)
    outputs = [each for each in dead if "tamiyo-output" in each.headers]
    assert [each.value is None for each in dead if each not in outputs] == [True, True]
    assert [each.key for each in outputs] == [b"large"]
    assert worker.metric("tamiyo_records_rejected_total", kind="too_large") == 1
    assert worker.end(signal.SIGTERM) == 0
    # Read again from the beginning, nothing is published twice.
    again = start(kafka, max_message_bytes=4_000)
    kafka_log.publish(NUMBERS, [number("c", step, 1) for step in (0, 1)])
    kafka_log.wait_for(SUMS.name, enough(3))
    assert len(kafka_log.read(NUMBERS.dead_letters)) == 3
    assert again.end(signal.SIGTERM) == 0


@pytest.mark.flow
def test_a_topic_that_takes_less_than_a_record_does_not_stop_the_worker(
    real_kafka: str, names: TopicNames, open_log: Callable[[KafkaSettings], KafkaLog], start: Callable[..., Process]
) -> None:
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    Topics(kafka, names, TOPICS).create(partitions=1)
    kafka_log = open_log(kafka)
    worker = start(kafka).wait_until_ready(1)
    shrink(kafka, names.full(SUMS.name), 4_000)
    kafka_log.publish(NUMBERS, [number("large", step, 777) for step in (0, 1)])
    (dead,) = kafka_log.wait_for(NUMBERS.dead_letters, lambda found: len(found) == 1)
    kafka_log.publish(NUMBERS, [number("small", step, 1) for step in (0, 1)])
    assert [each.key for each in kafka_log.wait_for(SUMS.name, enough(1))] == [b"small"]
    assert "the broker refuses it" in dead.headers["tamiyo-reason"]
    assert worker.end(signal.SIGTERM) == 0
    assert sum(kafka_log.committed("tamiyo_pairs", NUMBERS.name).values()) == 4


def shrink(kafka: KafkaSettings, topic: str, size: int) -> None:
    entry = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    connection = Connection(kafka)
    for future in connection.admin.incremental_alter_configs([resource]).values():
        future.result()
