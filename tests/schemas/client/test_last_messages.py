"""The newest messages are found from the ends, and little more is read than is needed."""

from typing import Any

import pytest

from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.client.last_messages import last_messages
from tamiyo.schemas.client.partition_reader import OffsetRange, PartitionReader
from tamiyo.schemas.kafka import KafkaSettings, TopicNames

PARTITIONS = 4


class CountingReader(PartitionReader):
    """Counts what it yields."""

    messages = 0

    def read(self, ranges: Any, **options: Any) -> Any:
        for message in super().read(ranges, **options):
            self.messages += 1
            yield message


@pytest.fixture
def topic(names: TopicNames) -> str:
    return names.full("numbers")


def fill(kafka: KafkaSettings, topic: str, count: int, *, rare_every: int = 1000, partition: int | None = None) -> None:
    """Publish numbers; number n has time n, is in partition n % 4, and has the key rare once in `rare_every`."""
    producer = AwaitedProducer(kafka)
    for number in range(count):
        key = b"rare" if number % rare_every == 0 else b"other"
        where = number % PARTITIONS if partition is None else partition
        producer.produce(topic, str(number).encode(), key, partition=where, timestamp_ms=1_000_000 + number)
    producer.flush()


def values(messages: list[Any]) -> list[int]:
    return [int(each.value()) for each in messages]


def test_the_newest_of_all_partitions_in_the_order_of_their_times(kafka: KafkaSettings, topic: str) -> None:
    fill(kafka, topic, 2_000)
    with CountingReader(kafka) as reader:
        ranges = reader.ranges(topic)
        assert values(last_messages(reader, ranges, 7)) == list(range(1_993, 2_000))
        assert reader.messages <= PARTITIONS * 7 * 5
        assert values(last_messages(reader, ranges, 5_000)) == list(range(2_000))


def test_it_widens_until_enough_of_a_key_are_found(kafka: KafkaSettings, topic: str) -> None:
    fill(kafka, topic, 6_000, rare_every=500)
    with CountingReader(kafka) as reader:
        found = last_messages(reader, reader.ranges(topic), 2, lambda each: each.key() == b"rare", first_width=16)
        assert values(found) == [5_000, 5_500]
        assert reader.messages < 6_000
        few = last_messages(reader, reader.ranges(topic), 99, lambda each: each.key() == b"rare")
        assert values(few) == list(range(0, 6_000, 500))
        assert last_messages(reader, reader.ranges(topic), 3, lambda each: each.key() == b"none") == []


def test_a_partition_whose_newest_are_old_does_not_hide_newer_ones(kafka: KafkaSettings, topic: str) -> None:
    """The busiest partition has all of the newest, and more of them than are read of a partition at first."""
    fill(kafka, topic, 40)
    producer = AwaitedProducer(kafka)
    for number in range(100, 140):
        producer.produce(topic, str(number).encode(), b"key", partition=2, timestamp_ms=1_000_000 + number)
    producer.flush()
    with PartitionReader(kafka) as reader:
        found = last_messages(reader, reader.ranges(topic), 30, first_width=1)
        assert values(found) == list(range(110, 140))
        assert values(last_messages(reader, reader.ranges(topic), 42, first_width=1)) == [38, 39, *range(100, 140)]


def test_nothing_is_found_in_empty_ranges_or_after_a_stop(kafka: KafkaSettings, topic: str) -> None:
    fill(kafka, topic, 8)
    with PartitionReader(kafka) as reader:
        assert last_messages(reader, [], 3) == []
        assert last_messages(reader, [OffsetRange(topic, 0, 2, 2)], 3) == []
        assert values(last_messages(reader, [OffsetRange(topic, 0, 1, 2)], 3)) == [4]
        assert last_messages(reader, reader.ranges(topic), 3, stopped=lambda: True) == []
