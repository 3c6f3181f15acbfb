"""Decisions, kernels and control commands from Kafka."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, TopicPartition

from tamiyo.host._client import receiver as receiver_module
from tamiyo.host._client.receiver import KafkaReceiver
from tamiyo.host._client.transport import InboundRecord
from tamiyo.schemas.adaptation import AdaptationDecision, CompiledKernel, ControlCommand, KernelStatus
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.codec import encode
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CONTROL, DECISIONS, KERNELS
from tamiyo.streams.admin.topics import Topics
from tests.support.kafka_log import KafkaLog
from tests.support.runs import RUN, decision, order


@pytest.fixture
def receivers(kafka: KafkaSettings, names: TopicNames) -> Iterator[list[KafkaReceiver]]:
    Topics(kafka, names).touch()
    made: list[KafkaReceiver] = []
    yield made
    for receiver in made:
        receiver.close()


def kernel(run_id: str = RUN) -> CompiledKernel:
    return CompiledKernel(
        run_id=run_id, kernel_id="ab" * 4, decision_id="d", layer_id="0", blueprint="b", status=KernelStatus.COMPILED
    )


class StalledConsumer:
    """A consumer whose fetcher has stalled: it returns nothing until a partition is assigned again."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._stalled = True

    def poll(self, timeout: float) -> Message | None:
        if not self._stalled:
            return self._consumer.poll(timeout)
        time.sleep(timeout)
        return None

    def incremental_assign(self, places: list[TopicPartition]) -> None:
        self._stalled = False
        self._consumer.incremental_assign(places)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)


def wait_for(receiver: KafkaReceiver, count: int) -> list[InboundRecord]:
    arrived: list[InboundRecord] = []
    deadline = time.monotonic() + 20
    while len(arrived) < count and time.monotonic() < deadline:
        arrived += receiver.receive()
        time.sleep(0.01)
    return arrived


def connect(kafka: KafkaSettings, names: TopicNames, **more: object) -> KafkaReceiver:
    return KafkaReceiver(RUN, kafka, names, connect_timeout_s=5.0, **more)  # type: ignore[arg-type]


def test_only_this_runs_records_since_its_start_are_received(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, receivers: list[KafkaReceiver]
) -> None:
    kafka_log.publish(DECISIONS, [decision("before")])
    receivers.append(connect(kafka, names))
    assert receivers[0].connected
    kafka_log.publish(DECISIONS, [decision("other", run_id="run-2"), decision("mine")])
    arrived = wait_for(receivers[0], 1)
    kafka_log.publish(KERNELS, [kernel("run-2"), kernel()])
    arrived += wait_for(receivers[0], 1)
    assert [type(each) for each in arrived] == [AdaptationDecision, CompiledKernel]
    assert arrived[0] == decision("mine")
    assert arrived[1] == kernel()
    assert list(receivers[0].receive()) == []


def test_control_commands_are_read_from_the_beginning(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, receivers: list[KafkaReceiver]
) -> None:
    kafka_log.publish(CONTROL, [order("*", paused=True), order("run-2", paused=True), order(protected_layers=["0"])])
    receivers.append(connect(kafka, names))
    arrived = wait_for(receivers[0], 2)
    assert all(isinstance(each, ControlCommand) for each in arrived)
    assert {each.run_id for each in arrived} == {"*", RUN}


def test_of_two_partitions_the_newest_command_counts_and_a_tombstone_lifts_it(
    kafka: KafkaSettings, names: TopicNames, receivers: list[KafkaReceiver]
) -> None:
    """As after partitions were added: the run's old command stays on its old partition."""
    topic, producer = names.full(CONTROL.name), AwaitedProducer(kafka)

    def send(partition: int, timestamp_ms: int, command: ControlCommand | None) -> None:
        value = encode(command) if command is not None else None
        producer.produce(topic, value, RUN, partition=partition, timestamp_ms=timestamp_ms)
        producer.flush()

    resumed, paused = order(time_ms=2_000), order(time_ms=1_000, paused=True)
    send(3, 2_000, resumed)
    receivers.append(connect(kafka, names))
    assert wait_for(receivers[0], 1) == [resumed]
    send(0, 1_000, paused)  # older, and delivered later
    send(0, 1_000, None)  # removes the older one only
    again = order(time_ms=3_000, paused=True)
    send(3, 3_000, again)
    assert wait_for(receivers[0], 1) == [again]
    send(3, 3_500, None)
    assert wait_for(receivers[0], 1) == [order(time_ms=3_000)]


def test_a_check_takes_no_record(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    Topics(kafka, names).touch()
    with monkeypatch.context() as patch:
        patch.setattr(KafkaReceiver, "_run", lambda self: None)  # only the checks use the consumer
        receiver = connect(kafka, names)
    kafka_log.publish(DECISIONS, [decision("waiting")])
    for _ in range(20):  # during which it is fetched
        receiver._check()
        time.sleep(0.02)
    message = receiver._consumer.poll(10)
    assert message is not None
    receiver._take(message)
    receiver._consumer.close()
    assert list(receiver.receive()) == [decision("waiting")]


def test_a_partition_that_appears_is_read_from_its_beginning(
    kafka: KafkaSettings, names: TopicNames, monkeypatch: pytest.MonkeyPatch, receivers: list[KafkaReceiver]
) -> None:
    """The embedded broker cannot add partitions: the first is all that is known at the start."""
    positions = KafkaReceiver._positions

    def some(self: KafkaReceiver, timeout_s: float, **more: Any) -> list[TopicPartition]:
        found = positions(self, timeout_s, **more)
        return found if more.get("known") else [each for each in found if each.partition == 0]

    monkeypatch.setattr(KafkaReceiver, "_positions", some)
    monkeypatch.setattr(receiver_module, "_CHECK_S", 0.5)
    receivers.append(connect(kafka, names))
    assert receivers[0].connected
    producer = AwaitedProducer(kafka)
    for partition in (2, 0):
        producer.produce(names.full(DECISIONS.name), encode(decision(f"in-{partition}")), RUN, partition=partition)
        producer.flush()
    arrived = wait_for(receivers[0], 2)
    assert decision("in-0") in arrived
    assert decision("in-2") in arrived


@pytest.mark.kafka
def test_partitions_added_later_are_read_from_their_beginning(
    real_kafka: str, names: TopicNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver_module, "_CHECK_S", 0.5)
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    topics = Topics(kafka, names, (DECISIONS, KERNELS, CONTROL))
    topics.create(partitions=1)
    producer = AwaitedProducer(kafka)
    receiver = connect(kafka, names)
    try:
        assert receiver.connected
        topics.grow(3)
        for partition in (2, 0):
            producer.produce(names.full(DECISIONS.name), encode(decision(f"in-{partition}")), RUN, partition=partition)
            producer.flush()
        arrived = wait_for(receiver, 2)
        assert decision("in-0") in arrived
        assert decision("in-2") in arrived
    finally:
        receiver.close()


def test_a_removed_order_forbids_nothing_any_more(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, receivers: list[KafkaReceiver]
) -> None:
    kafka_log.publish(CONTROL, [order("*", time_ms=5, paused=True), order("run-2", paused=True)])
    receivers.append(connect(kafka, names))
    arrived = wait_for(receivers[0], 1)
    # The first has no order to remove, and the second is of another run.
    kafka_log.publish_bytes(CONTROL, [(RUN.encode(), None), (b"run-2", None), (b"*", None)])
    kafka_log.publish(CONTROL, [order(time_ms=4, dry_run=True)])
    arrived += wait_for(receivers[0], 2)
    everyone = [each for each in arrived if each.run_id == "*"]
    assert everyone == [order("*", time_ms=5, paused=True), order("*", time_ms=5)]
    assert [each for each in arrived if each.run_id != "*"] == [order(time_ms=4, dry_run=True)]


def test_kernels_are_prefetched_in_the_background(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, receivers: list[KafkaReceiver]
) -> None:
    fetched: list[str] = []
    receivers.append(connect(kafka, names, on_kernel=lambda each: fetched.append(each.kernel_id)))
    kafka_log.publish(KERNELS, [kernel("run-2"), kernel()])
    assert wait_for(receivers[0], 1) == [kernel()]
    assert fetched == ["ab" * 4]


def test_an_unreadable_record_stops_nothing(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, receivers: list[KafkaReceiver]
) -> None:
    receivers.append(connect(kafka, names))
    kafka_log.publish_bytes(DECISIONS, [(RUN.encode(), b"nonsense"), (RUN.encode(), None)])
    kafka_log.publish(DECISIONS, [decision()])
    assert wait_for(receivers[0], 1) == [decision()]


@pytest.mark.parametrize("received", [0, 1])
def test_a_stalled_partition_is_assigned_again(
    kafka: KafkaSettings,
    names: TopicNames,
    kafka_log: KafkaLog,
    receivers: list[KafkaReceiver],
    monkeypatch: pytest.MonkeyPatch,
    received: int,
) -> None:
    kafka_log.publish(DECISIONS, [decision("before")])
    monkeypatch.setattr(receiver_module, "_CHECK_S", 0.5)
    receivers.append(connect(kafka, names))
    sent = [decision(f"{number}") for number in range(received + 2)]
    kafka_log.publish(DECISIONS, sent[:received])
    assert wait_for(receivers[0], received) == sent[:received]
    receivers[0]._consumer = StalledConsumer(receivers[0]._consumer)  # type: ignore[assignment]
    kafka_log.publish(DECISIONS, sent[received:])
    assert wait_for(receivers[0], 2) == sent[received:]


def test_a_topic_that_appears_later_is_read_from_its_beginning(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog
) -> None:
    receiver = connect(kafka, names)  # no topic is there yet
    try:
        assert not receiver.connected
        Topics(kafka, names).touch()
        kafka_log.publish(DECISIONS, [decision()])
        assert wait_for(receiver, 1) == [decision()]
        assert receiver.connected
    finally:
        receiver.close()


def test_an_unreachable_broker_costs_the_timeout_only(names: TopicNames, capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    receiver = KafkaReceiver(RUN, KafkaSettings(bootstrap_servers="127.0.0.1:1"), names, connect_timeout_s=0.2)
    assert time.monotonic() - started < 5
    assert not receiver.connected
    assert list(receiver.receive()) == []
    receiver.close()
    assert capfd.readouterr().err == ""
