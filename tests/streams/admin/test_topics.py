"""Creating, checking and deleting topics."""

import asyncio
from contextlib import closing
from types import SimpleNamespace

import aiokafka
import numpy as np
import pytest
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.codec import MAX_READ_BYTES as LARGEST_DECODED
from tamiyo.schemas.errors import BrokerError, ConfigurationError
from tamiyo.schemas.kafka import (
    BATCH_BYTES,
    HEADERS_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_READ_BYTES,
    PRODUCER,
    KafkaSettings,
    TopicNames,
)
from tamiyo.schemas.topics import CATALOGUE, TOPOLOGY, WINDOWS
from tamiyo.streams.admin.brokers import free_ports
from tamiyo.streams.admin.growth import Growth
from tamiyo.streams.admin.topic_findings import TopicState
from tamiyo.streams.admin.topics import Topics, _in_sync, _Metadata
from tamiyo.streams.settings import WorkerSettings


def test_the_embedded_broker_is_touched(kafka: KafkaSettings, names: TopicNames) -> None:
    topics = Topics(kafka, names)
    assert topics.embedded()
    assert len(topics.missing()) == 3 * len(CATALOGUE)
    assert topics.check() == ["no topic of this installation exists"]
    Topics(kafka, names).touch()
    assert topics.missing() == []
    assert topics.check() == []
    assert {each.partitions for each in topics.states()} == {4}
    assert topics.create(partitions=7) == []


def test_a_missing_broker_is_an_error() -> None:
    (port,) = free_ports(1)
    topics = Topics(KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}"), TopicNames())
    assert "Connection refused" in str(topics.reachable(0.2))


def stated(monkeypatch: pytest.MonkeyPatch, *states: TopicState, brokers: int = 3) -> Topics:
    """Return topics of which a broker reports `states`."""
    topics = Topics(KafkaSettings(bootstrap_servers="127.0.0.1:1"), TopicNames())
    monkeypatch.setattr(topics, "states", lambda: list(states))
    monkeypatch.setattr(topics, "embedded", lambda: False)
    monkeypatch.setattr(topics, "brokers", lambda: brokers)
    return topics


@pytest.mark.parametrize(("odd", "highest"), [(3, 4), (8, 8)])
def test_differing_partition_counts_and_a_missing_topic_are_reported_with_what_helps(
    monkeypatch: pytest.MonkeyPatch, odd: int, highest: int
) -> None:
    counts = (("a", 4), ("b", odd), ("c", 4), ("d", 0))
    topics = stated(monkeypatch, *(TopicState(name, count, "delete", replication=3) for name, count in counts))
    missing, differs = topics.findings()
    assert missing.text == "topic d does not exist"
    assert missing.advice == "`tamiyo topics create` creates it"
    assert differs.text.startswith(f"topic b has {odd} partitions where the others have 4: ")
    assert differs.advice == f"`tamiyo topics grow --partitions {highest}` makes them equal"
    assert topics.check() == [missing.text, differs.text]


@pytest.mark.parametrize(
    ("replication", "min_insync", "brokers", "state", "text"),
    [
        (3, 2, 3, None, ""),
        (1, 1, 1, None, ""),
        (2, 1, 2, None, ""),
        (1, 1, 3, "warning", "topic a has replication 1 on a cluster of 3 brokers"),
        (1, 2, 1, "problem", "topic a has min.insync.replicas=2 and replication 1: nobody can publish"),
        (3, 3, 3, "warning", "while one broker is away, nobody can publish"),
        (2, 2, 3, "warning", "while one broker is away, nobody can publish"),
        (3, 1, 3, "warning", "a record may be confirmed that one broker alone has"),
    ],
)
def test_replicas_that_lose_records_or_stop_the_flow_are_reported(
    monkeypatch: pytest.MonkeyPatch, replication: int, min_insync: int, brokers: int, state: str | None, text: str
) -> None:
    one = TopicState("a", 4, "delete", replication=replication, min_insync=min_insync)
    found = stated(monkeypatch, one, brokers=brokers).findings()
    if state is None:
        assert found == []
    else:
        assert found[0].state == state
        assert text in found[0].text
        # A stage starts with a warning; with a problem it does not.
        assert bool(stated(monkeypatch, one, brokers=brokers).check()) == (state == "problem")


def test_a_warning_that_many_topics_share_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    topics = stated(monkeypatch, *(TopicState(name, 4, "delete", replication=1, min_insync=1) for name in "abcd"))
    (found,) = topics.findings()
    assert found.text.startswith("4 topics (a, b, ...) have replication 1 on a cluster of 3 brokers")


def test_a_problem_that_many_topics_share_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [TopicState(name, 4, "delete", max_batch_bytes=1_000) for name in "abcd"]
    missing = [TopicState(name, 0, "delete") for name in "efg"]
    topics = stated(monkeypatch, *wrong, *missing)
    absent, small = topics.findings()
    assert absent.text == "3 topics (e, f, ...) do not exist"
    assert small.text.startswith("4 topics (a, b, ...) have max.message.bytes=1000, but ")
    assert "--topic for each" in small.advice


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"in_sync": 0}, "partitions with 0 replicas in sync where 1 must be"),
        ({"in_sync": 1, "min_insync": 2}, "partitions with 1 replicas in sync where 2 must be"),
        ({"in_sync": 2, "min_insync": 2}, None),
        ({"in_sync": 2, "min_insync": 2, "out_of_sync": 1}, "replicas are not all in sync"),
        ({"retention_ms": 999, "expected_retention_ms": 1_000}, "retention.ms=999 where the catalogue has 1000"),
        ({"retention_ms": 1_000, "expected_retention_ms": 1_000}, None),
        ({"retention_ms": -1, "expected_retention_ms": 1_000}, None),
        ({"retention_ms": 999}, None),
    ],
)
def test_replicas_that_are_away_and_retention(
    monkeypatch: pytest.MonkeyPatch, state: dict[str, int], text: str | None
) -> None:
    findings = stated(monkeypatch, TopicState("a", 4, "delete", replication=3, **state)).findings()  # type: ignore[arg-type]
    assert [text in each.text for each in findings if text] == [True] * bool(text)
    assert len(findings) == bool(text)
    assert not any(each.state == "problem" for each in findings) or "in sync where" in str(text)


def test_replicas_in_sync_are_read_from_the_metadata() -> None:
    class Partition:
        def __init__(self, leader: int, isrs: list[int]) -> None:
            self.leader, self.isrs = leader, isrs

    assert [_in_sync(Partition(1, [1, 2])), _in_sync(Partition(-1, [2]))] == [2, 0]


def test_times_of_the_broker_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = stated(monkeypatch, TopicState("a", 4, "delete", timestamps="LogAppendTime")).findings()
    assert "LogAppendTime" in found.text


def test_the_sizes_fit_each_other() -> None:
    assert WorkerSettings().max_message_bytes == PRODUCER["message.max.bytes"] == MAX_MESSAGE_BYTES
    assert WorkerSettings(max_message_bytes=MAX_READ_BYTES).max_message_bytes == LARGEST_DECODED
    with pytest.raises(ConfigurationError, match="16777217"):
        WorkerSettings(max_message_bytes=MAX_READ_BYTES + 1)  # no reader would decode it
    assert HEADERS_BYTES < BATCH_BYTES


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
    assert {(each.replication, each.min_insync) for each in states.values()} == {(1, 1)}  # one broker
    assert {(each.in_sync, each.out_of_sync) for each in states.values()} == {(1, 0)}
    assert all(each.expected_retention_ms in (None, each.retention_ms) for each in states.values())
    assert {(each.max_batch_bytes, each.timestamps) for each in states.values()} == {(5 * 1024 * 1024, "CreateTime")}

    # Somebody made one by hand, otherwise.
    other = TopicNames(prefix=f"{names.prefix}other.")
    wrong = NewTopic(other.full(TOPOLOGY.name), num_partitions=1, config={"cleanup.policy": "delete"})
    admin = AdminClient(kafka.librdkafka())
    admin.create_topics([wrong])[wrong.topic].result(10)
    topics = Topics(kafka, other, (WINDOWS, TOPOLOGY))
    Topics(kafka, other, (WINDOWS,)).create(partitions=3)
    problems = [each for each in topics.check() if "do not exist" not in each]
    assert len(problems) == 3
    assert "has 1 partitions where the others have 3" in problems[0]
    assert "cleanup.policy=delete, but compact is expected" in problems[1]
    assert f"max.message.bytes=1048588, but {5 * 1024 * 1024} is needed" in problems[2]


@pytest.mark.kafka
def test_missing_topics_get_the_number_of_partitions_that_the_others_have(real_kafka: str, names: TopicNames) -> None:
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    Topics(kafka, names, (WINDOWS,)).create(partitions=6)
    topics = Topics(kafka, names, (WINDOWS, TOPOLOGY))
    with pytest.raises(ConfigurationError, match=r"exist with 6.*`tamiyo topics grow --partitions 7`"):
        topics.create(partitions=7)
    with pytest.raises(ConfigurationError, match=r"exist with 6.*Kafka cannot take partitions away"):
        topics.create(partitions=5)
    assert len(topics.create()) == 3
    assert {each.partitions for each in topics.states()} == {6}
    with pytest.raises(ConfigurationError, match="exist with 6"):
        topics.create(partitions=7)  # nothing is missing, and nothing would change


def requested(monkeypatch: pytest.MonkeyPatch, topics: Topics, brokers: int, **partitions: int) -> list[NewTopic]:
    """Return what `topics.create()` requests of a cluster on which topics exist, each with so many partitions."""
    found: list[NewTopic] = []

    class Admin:
        def create_topics(self, wanted: list[NewTopic], **_: object) -> dict[str, object]:
            found.extend(wanted)
            return {}

    present = {
        name.replace("_", "."): SimpleNamespace(partitions=dict.fromkeys(range(n))) for name, n in partitions.items()
    }
    monkeypatch.setattr(topics, "embedded", lambda: False)
    monkeypatch.setattr(topics, "_metadata", lambda: _Metadata("cluster", present, brokers))
    monkeypatch.setattr(topics, "_wait_until_visible", lambda names: None)
    monkeypatch.setattr(topics, "_admin", Admin())
    topics.create()
    return found


@pytest.mark.parametrize(("brokers", "replication", "min_insync"), [(1, 1, 1), (2, 2, 1), (3, 3, 2), (6, 3, 2)])
def test_topics_are_replicated_as_the_cluster_allows(
    names: TopicNames, monkeypatch: pytest.MonkeyPatch, brokers: int, replication: int, min_insync: int
) -> None:
    topics = Topics(KafkaSettings(bootstrap_servers="127.0.0.1:1"), names, (WINDOWS,))
    found = requested(monkeypatch, topics, brokers)
    assert {each.replication_factor for each in found} == {replication}
    assert {each.config["min.insync.replicas"] for each in found} == {str(min_insync)}
    assert {each.num_partitions for each in found} == {4}


def test_topics_that_an_upgrade_adds_have_as_many_partitions_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    topics = Topics(KafkaSettings(bootstrap_servers="127.0.0.1:1"), TopicNames(), (WINDOWS, TOPOLOGY))
    found = requested(monkeypatch, topics, 3, tamiyo_health_windows=6)
    assert {each.topic: each.num_partitions for each in found} == dict.fromkeys(
        (WINDOWS.dead_letters, WINDOWS.late, TOPOLOGY.name, TOPOLOGY.dead_letters, TOPOLOGY.late), 6
    )


@pytest.mark.kafka
@pytest.mark.parametrize("largest", [MAX_MESSAGE_BYTES, MAX_READ_BYTES])
def test_a_message_of_the_largest_size_can_be_sent_again_with_headers(
    real_kafka: str, names: TopicNames, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    kafka, name = KafkaSettings(bootstrap_servers=real_kafka), names.full(WINDOWS.name)
    monkeypatch.setenv("TAMIYO_WORKER_MAX_MESSAGE_BYTES", str(largest))
    Topics(kafka, names, (WINDOWS,)).create(partitions=1)
    value = np.random.default_rng(0).bytes(largest)
    producer = AwaitedProducer(kafka)
    producer.produce(name, value, b"run", headers=[("tamiyo-reason", b"x" * 2_000), ("tamiyo-inside", b"y" * 16_000)])
    producer.flush()
    with PartitionReader(kafka) as reader:
        assert [each.value() for each in reader.read(reader.ranges(name))] == [value]


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


def test_the_embedded_broker_cannot_grow(kafka: KafkaSettings, names: TopicNames) -> None:
    with pytest.raises(ConfigurationError, match="embedded broker's topics have 4 partitions"):
        Growth(kafka, names, 8).check(quiet_s=60)
