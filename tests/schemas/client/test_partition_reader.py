"""Reading partitions without a group."""

import time
from collections.abc import Iterator

import pytest

from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.client.partition_reader import OffsetRange, PartitionReader
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames


@pytest.fixture
def topic(kafka: KafkaSettings, names: TopicNames) -> str:
    """A topic with 0 to 9 on partition 1, and "a" on partition 2."""
    name = names.full("test.reader")
    producer = AwaitedProducer(kafka)
    for number in range(10):
        producer.produce(name, b"%d" % number, partition=1, timestamp_ms=1_000 + number)
    producer.produce(name, b"a", partition=2)
    producer.flush()
    return name


@pytest.fixture
def reader(kafka: KafkaSettings) -> Iterator[PartitionReader]:
    with PartitionReader(kafka) as made:
        yield made


def test_a_range_is_read_from_its_start_to_before_its_end(topic: str, reader: PartitionReader) -> None:
    ranges = [OffsetRange(topic, 1, 3, 6), OffsetRange(topic, 2, 0, 1), OffsetRange(topic, 3, 0, 0)]
    found = [(each.partition(), each.offset(), each.value()) for each in reader.read(ranges)]
    assert sorted(found) == [(1, 3, b"3"), (1, 4, b"4"), (1, 5, b"5"), (2, 0, b"a")]
    assert [each.offset() for each in reader.read([OffsetRange(topic, 1, 8, 10)])] == [8, 9]  # a second time
    assert list(reader.read([OffsetRange(topic, 1, 4, 4)])) == []


def test_partitions_and_bounds(topic: str, reader: PartitionReader, names: TopicNames) -> None:
    assert reader.partitions(topic) == [0, 1, 2, 3]
    assert reader.bounds(topic, 1) == (0, 10)
    assert reader.ranges(topic)[:3] == [
        OffsetRange(topic, 0, 0, 0),
        OffsetRange(topic, 1, 0, 10),
        OffsetRange(topic, 2, 0, 1),
    ]
    missing = names.full("test.missing")
    assert reader.partitions(missing) == []
    assert missing not in reader.topics()  # the request did not create it


def test_reading_stops_on_request_and_between_batches(topic: str, reader: PartitionReader) -> None:
    assert list(reader.read([OffsetRange(topic, 1, 0, 10)], stopped=lambda: True)) == []


def test_a_range_beyond_the_log_is_an_error_after_the_timeout(topic: str, reader: PartitionReader) -> None:
    began = time.monotonic()
    messages = reader.read([OffsetRange(topic, 1, 8, 12)], timeout_s=1)
    assert [next(messages).offset(), next(messages).offset()] == [8, 9]
    with pytest.raises(BrokerError, match=r"no message of .*test\.reader/1 came for 1 s, before offset 12"):
        next(messages)
    assert time.monotonic() - began > 1


def test_commits_are_those_of_the_group(topic: str, kafka: KafkaSettings) -> None:
    with PartitionReader(kafka, f"{topic}-group") as reader:
        assert reader.committed([(topic, 1), (topic, 2)]) == {}
        reader.assign({(topic, 1): 0})
        (message,) = reader.poll(1, 10)
        reader.consumer.commit(message, asynchronous=False)
        assert reader.committed([(topic, 1), (topic, 2)]) == {(topic, 1): 1}
    with PartitionReader(kafka, f"{topic}-other") as reader:
        assert reader.committed([(topic, 1)]) == {}


def test_partitions_can_be_added(topic: str, reader: PartitionReader) -> None:
    reader.assign({(topic, 1): 9})
    reader.add({(topic, 2): 0})
    found: list[bytes | None] = []
    deadline = time.monotonic() + 20
    while len(found) < 2 and time.monotonic() < deadline:
        found += [each.value() for each in reader.poll()]
    assert sorted(map(str, found)) == ["b'9'", "b'a'"]


def test_a_lost_offset_is_an_error_where_nothing_may_be_skipped(topic: str, kafka: KafkaSettings) -> None:
    with PartitionReader(kafka, options={"auto.offset.reset": "error"}) as reader:
        reader.assign({(topic, 1): 99})
        with pytest.raises(BrokerError, match="cannot be read"):
            [reader.poll() for _ in range(100)]
