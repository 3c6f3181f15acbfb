"""Partitions that a consumer has stopped fetching."""

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from tamiyo.schemas.client.stalls import Stalls


class Consumer:
    """Stands at `at` of each partition of a log that ends at `ends`."""

    def __init__(self, **at: int) -> None:
        self.at = at
        self.ends: dict[str, int | None] = {}
        self.requests = 0
        self.away = False

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition(topic, 0) for topic in self.at]

    def position(self, places: list[TopicPartition]) -> list[TopicPartition]:
        return [TopicPartition(place.topic, 0, self.at[place.topic]) for place in places]

    def offsets_for_times(self, places: list[TopicPartition], timeout: float) -> list[Any]:
        self.requests += 1
        if self.away:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        ends = [self.ends[place.topic] for place in places]
        return [SimpleNamespace(offset=end, error=None if end is not None else "unknown") for end in ends]


@pytest.fixture
def consumer() -> Consumer:
    found = Consumer(read=9, waits=5, fresh=-1001, gone=3)
    found.ends = {"read": 9, "waits": 8, "fresh": 2, "gone": None}
    return found


def stalls(consumer: Consumer) -> Stalls:
    return Stalls(consumer, [TopicPartition(topic, 0, 1) for topic in consumer.at])


def test_a_record_unread_at_two_checks_is_a_stall_found_by_one_request(consumer: Consumer) -> None:
    detector = stalls(consumer)
    assert detector.check(1.0) == []
    assert [(each.topic, each.offset) for each in detector.check(1.0)] == [("waits", 5), ("fresh", 1)]
    assert consumer.requests == 2


def test_what_moves_has_not_stalled(consumer: Consumer) -> None:
    detector = stalls(consumer)
    detector.check(1.0)
    consumer.at.update(waits=6, fresh=2)
    assert detector.check(1.0) == []


def test_a_broker_that_is_unavailable_is_no_stall(consumer: Consumer) -> None:
    detector = stalls(consumer)
    detector.check(1.0)
    consumer.away = True
    assert detector.check(1.0) == []
    consumer.away = False
    assert detector.check(1.0) == []  # a stall needs two checks in a row with a response
