"""Finds partitions that a consumer has silently stopped fetching.

librdkafka can stop after a broker outage (its issue 5153): no error is raised, and no message comes until the partition
is assigned again. Long-running readers without a consumer group therefore check for it.
"""

from collections.abc import Iterable
from typing import Any

from confluent_kafka import OFFSET_END, KafkaException, TopicPartition


class Stalls:
    """Detects stalled partitions among those assigned to a consumer."""

    def __init__(self, consumer: Any, assigned: Iterable[TopicPartition]) -> None:
        """`assigned`: the consumer's partitions, each with its first offset."""
        self._consumer = consumer
        self._starts = {(place.topic, place.partition): place.offset for place in assigned}
        self._waiting: dict[tuple[str, int], int] = {}

    def places(self) -> list[TopicPartition]:
        """Return the assigned partitions, each with the next offset to read."""
        places = self._consumer.position(self._consumer.assignment())
        for place in places:
            if place.offset < 0:  # no message yet
                place.offset = self._starts[place.topic, place.partition]
        return list(places)

    def check(self, timeout_s: float) -> list[TopicPartition]:
        """Return the partitions, with their next offsets, whose next message was unread at the last check too.

        Empty where the broker does not respond within `timeout_s`: then no fetch is expected either.
        """
        before, self._waiting = self._waiting, {}
        stalled = []
        try:
            places = self.places()
            # One request for all: separate requests would each wait behind a fetch.
            latest = [TopicPartition(place.topic, place.partition, OFFSET_END) for place in places]
            ends = self._consumer.offsets_for_times(latest, timeout=timeout_s)
        except KafkaException:
            return []
        for place, end in zip(places, ends, strict=True):
            if end.error is None and end.offset > place.offset:
                key = (place.topic, place.partition)
                self._waiting[key] = place.offset
                if before.get(key) == place.offset:
                    stalled.append(place)
        return stalled
