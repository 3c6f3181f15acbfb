"""Detects partitions that a consumer has silently stopped fetching.

After a broker outage, librdkafka's consumer may stop fetching a partition without an error, until the partition is
assigned again (librdkafka issue 5153). Readers that use confluent-kafka without a group therefore check periodically.
"""

from collections.abc import Iterable
from typing import Any

from confluent_kafka import OFFSET_END, KafkaException, TopicPartition


class Stalls:
    """Finds stalled partitions among those assigned to a consumer."""

    def __init__(self, consumer: Any, assigned: Iterable[TopicPartition]) -> None:
        """Watch a consumer.

        Args:
            consumer: A confluent-kafka consumer.
            assigned: The partitions as assigned to it, each with its first offset.
        """
        self._consumer = consumer
        self._starts = {(place.topic, place.partition): place.offset for place in assigned}
        self._waiting: dict[tuple[str, int], int] = {}

    def add(self, assigned: Iterable[TopicPartition]) -> None:
        """Watch these partitions too, which were assigned since, each with its first offset."""
        self._starts.update({(place.topic, place.partition): place.offset for place in assigned})

    def places(self) -> list[TopicPartition]:
        """Return the assigned partitions, each with the next offset to read."""
        places = self._consumer.position(self._consumer.assignment())
        for place in places:
            if place.offset < 0:  # nothing was read yet
                place.offset = self._starts[place.topic, place.partition]
        return list(places)

    def check(self, timeout_s: float) -> list[TopicPartition]:
        """Find partitions whose next record was available at the last check and is still unread.

        Args:
            timeout_s: Seconds to wait for the broker.

        Returns:
            The stalled partitions, each with the next offset to read; empty if the broker does not respond, which is
            another failure.
        """
        before, self._waiting = self._waiting, {}
        stalled = []
        try:
            places = self.places()
            # One request for all partitions: one for each would wait behind a fetch every time.
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
