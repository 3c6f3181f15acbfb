"""Creating, checking and deleting topics."""

import asyncio
from contextlib import closing

import aiokafka
import numpy as np
import pytest
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import MAX_MESSAGE_BYTES, PRODUCER, KafkaSettings, TopicNames
from tamiyo.schemas.topics import CATALOGUE, TOPOLOGY, WINDOWS
from tamiyo.streams.admin.brokers import free_ports
from tamiyo.streams.admin.topics import MAX_BATCH_BYTES, Topics, TopicState
from tamiyo.streams.settings import WorkerSettings


def test_the_embedded_broker_is_touched(kafka: KafkaSettings, names: TopicNames) -> None:
    topics = Topics(kafka, names)
    assert topics.embedded()
    assert len(topics.missing()) == 3 * len(CATALOGUE)
    assert topics.check()[0] == f"topic {names.prefix}telemetry.execution.kernel_performance does not exist"
    Topics(kafka, names).touch()
    assert topics.missing() == []
    assert topics.check() == []
    assert {each.partitions for each in topics.states()} == {4}
    assert topics.create(partitions=7) == []


def test_a_missing_broker_is_an_error() -> None:
    (port,) = free_ports(1)
    topics = Topics(KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}"), TopicNames())
    assert "Connection refused" in str(topics.reachable(0.2))


def test_a_differing_partition_count_and_a_missing_topic_are_reported(
    names: TopicNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = Topics(KafkaSettings(bootstrap_servers="127.0.0.1:1"), names)
    states = [TopicState(name, count, "delete") for name, count in (("a", 4), ("b", 3), ("c", 4), ("d", 0))]
    monkeypatch.setattr(topics, "states", lambda: states)
    missing, differs = topics.check()
    assert missing == "topic d does not exist"
    assert differs.startswith("topic b has 3 partitions where the others have 4: ")


@pytest.mark.kafka
def test_topics_are_created_as_in_the_catalogue(real_kafka: str, names: TopicNames) -> None:
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    topics = Topics(kafka, names, (WINDOWS, TOPOLOGY))
    assert not topics.embedded()
    assert topics.reachable() is None
    assert len(topics.create(partitions=3)) == 6
    assert topics.create(partitions=3) == []
    assert topics.check() == []
    states = {each.name.removeprefix(names.prefix): each for each in topics.states()}
    assert (states[TOPOLOGY.name].cleanup, states[WINDOWS.name].cleanup) == ("compact", "delete")
    assert states[WINDOWS.name].retention_ms == 7 * 86_400_000
    assert states[WINDOWS.late].retention_ms == 30 * 86_400_000
    assert {each.partitions for each in states.values()} == {3}

    # Somebody made one by hand, otherwise.
    other = TopicNames(prefix=f"{names.prefix}other.")
    wrong = NewTopic(other.full(TOPOLOGY.name), num_partitions=1, config={"cleanup.policy": "delete"})
    admin = AdminClient(kafka.librdkafka())
    admin.create_topics([wrong])[wrong.topic].result(10)
    topics = Topics(kafka, other, (WINDOWS, TOPOLOGY))
    topics.create(partitions=3)
    problems = topics.check()
    assert len(problems) == 3
    assert "has 1 partitions where the others have 3" in problems[0]
    assert "cleanup.policy=delete, but compact is expected" in problems[1]
    assert f"max.message.bytes=1048588, but {MAX_BATCH_BYTES} is needed" in problems[2]


@pytest.mark.kafka
def test_the_largest_message_is_accepted_by_the_broker_and_read_by_every_client(
    real_kafka: str, names: TopicNames
) -> None:
    kafka, name = KafkaSettings(bootstrap_servers=real_kafka), names.full(WINDOWS.name)
    Topics(kafka, names, (WINDOWS,)).create(partitions=1)
    room = 1_000  # for the batch's own framing, which librdkafka counts as well
    value = np.random.default_rng(0).bytes(MAX_MESSAGE_BYTES - room)  # random: no compression makes it smaller
    producer = Producer(kafka.librdkafka(**PRODUCER))
    with pytest.raises(KafkaException, match="MSG_SIZE_TOO_LARGE"):
        producer.produce(name, value + bytes(room))
    for each in (b"small", value, b"last"):
        producer.produce(name, each)
    assert producer.flush(30) == 0

    group = {"group.id": names.prefix, "auto.offset.reset": "earliest"}
    with closing(Consumer(kafka.librdkafka(**group))) as consumer:
        consumer.subscribe([name])
        assert [message.value() for message in consumer.consume(3, timeout=30)] == [b"small", value, b"last"]
    assert asyncio.run(read_by_aiokafka(kafka, name, 3)) == [b"small", value, b"last"]


async def read_by_aiokafka(kafka: KafkaSettings, name: str, count: int) -> list[bytes]:
    """Read as stages do, which fetch less at once than the largest message."""
    limit = WorkerSettings().max_fetch_bytes
    assert limit < MAX_MESSAGE_BYTES
    consumer = aiokafka.AIOKafkaConsumer(
        name, bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="earliest", max_partition_fetch_bytes=limit
    )
    async with consumer:
        return [(await asyncio.wait_for(consumer.getone(), 30)).value for _ in range(count)]


@pytest.mark.kafka
def test_a_refusal_of_the_broker_is_an_error(real_kafka: str, names: TopicNames) -> None:
    topics = Topics(KafkaSettings(bootstrap_servers=real_kafka), names, (WINDOWS,))
    with pytest.raises(BrokerError, match="could not be created"):
        topics.create(partitions=1, replication=3)
