"""The newest record under each key, whatever partition it is on."""

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.client.compacted import REMOVED_S, Copy, NewestByKey, newest_records
from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.telemetry import CacheHitRates
from tests.support.pairs import FACTORS, number


def taken(*copies: Copy[str]) -> NewestByKey[str, str]:
    found: NewestByKey[str, str] = NewestByKey()
    for each in copies:
        found.take("key", each)
    return found


@pytest.mark.parametrize(
    ("copies", "newest"),
    [
        ([Copy(0, 1, "old"), Copy(5, 2, "new")], "new"),
        ([Copy(0, 1, None), Copy(5, 2, "new")], "new"),
        ([Copy(0, 1, "old"), Copy(5, 2, None)], None),
        ([Copy(0, 2, None), Copy(5, 2, "kept")], "kept"),
        ([Copy(0, 2, "eight", version=8), Copy(5, 2, "seven", version=7)], "eight"),
        ([Copy(0, 2, "seven", version=9), Copy(5, 3, "later", version=7)], "later"),
    ],
)
def test_between_partitions_the_newest_counts_in_whatever_order_they_are_read(
    copies: list[Copy[str]], newest: str | None
) -> None:
    for order in itertools.permutations(copies):
        assert taken(*order).get("key") == newest


def test_on_one_partition_the_later_message_counts_whatever_its_time() -> None:
    assert taken(Copy(0, 5, "first"), Copy(0, 3, "second")).get("key") == "second"
    assert taken(Copy(0, 5, "first"), Copy(0, 3, None)).get("key") is None
    # What compaction removes does not decide: only the last message of each partition is compared.
    for order in ([0, 1, 2], [0, 2, 1], [2, 0, 1]):
        copies = [Copy(0, 9, "removed"), Copy(0, 3, "last"), Copy(1, 7, "other")]
        assert taken(*(copies[each] for each in order)).get("key") == "other"


def test_a_change_of_the_newest_is_reported() -> None:
    found: NewestByKey[str, str] = NewestByKey()
    assert found.take("key", Copy(1, 5, "new"))
    assert not found.take("key", Copy(0, 4, "old"))
    assert not found.take("key", Copy(0, 4, None))
    assert found.take("key", Copy(1, 6, None))
    assert [each.partition for each in found.copies("key")] == [0, 1]


messages = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.integers(0, 3), st.booleans()), max_size=12)


@given(messages, st.randoms(use_true_random=False))
def test_the_newest_depends_on_the_logs_and_not_on_how_reading_interleaves_them(
    sent: list[tuple[str, int, int, bool]], random: object
) -> None:
    logs: list[list[tuple[str, Copy[str]]]] = [[], [], []]
    for index, (key, partition, time_ms, removed) in enumerate(sent):
        logs[partition].append((key, Copy(partition, time_ms, None if removed else str(index))))

    def read(order: Iterable[int]) -> NewestByKey[str, str]:
        found: NewestByKey[str, str] = NewestByKey()
        left = [iter(log) for log in logs]
        for partition in order:
            key, copy = next(left[partition])
            found.take(key, copy)
        return found

    turns = [partition for partition, log in enumerate(logs) for _ in log]
    first = dict(read(turns).items())
    random.shuffle(turns)  # type: ignore[attr-defined]
    again = read(turns)
    assert dict(again.items()) == first
    assert len(again) == len(first)


def test_removed_keys_are_forgotten_after_a_while() -> None:
    now = 0.0
    found: NewestByKey[str, str] = NewestByKey(clock=lambda: now)
    found.take("gone", Copy(1, 5, None))
    found.take("hidden", Copy(1, 5, None))
    found.take("hidden", Copy(0, 4, "older"))
    found.take("kept", Copy(1, 5, "value"))
    now = REMOVED_S - 1
    found.forget_removed()
    found.take("gone", Copy(0, 4, "older"))  # read late from a slow partition
    assert found.get("gone") is None
    found.take("gone", Copy(0, 4, None))
    now = 2 * REMOVED_S
    found.forget_removed()
    assert sorted(found) == ["hidden", "kept"]  # forgetting "hidden" would bring the older one back
    assert found.get("hidden") is None
    assert len(found) == 1


def test_a_topic_is_read_to_its_newest_records(kafka: KafkaSettings, names: TopicNames) -> None:
    topic, producer = names.full(FACTORS.name), AwaitedProducer(kafka)
    for key, partition, time_ms, value in [
        ("a", 3, 2_000, encode(number("a", 0, 2))),
        ("a", 0, 1_000, encode(number("a", 0, 1))),
        ("b", 0, 1_000, encode(number("b", 0, 1))),
        ("b", 1, 2_000, None),
        ("c", 1, 1_000, b"rubbish"),
        ("d", 1, 1_000, encode(number("d", 0, 4))),
    ]:
        producer.produce(topic, value, key, partition=partition, timestamp_ms=time_ms)
    producer.flush()
    failed: list[tuple[int | None, SchemaError]] = []
    with PartitionReader(kafka) as reader:
        found = newest_records(
            reader, topic, CacheHitRates, undecodable=lambda offset, error: failed.append((offset, error))
        )
        assert {key: record.hits for key, record in found.items()} == {"a": 2, "d": 4}
        assert len(failed) == 1
