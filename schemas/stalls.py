"""Partitions that a consumer has stopped to fetch without a word.

librdkafka's can, after a broker was away for one (its issue 5153): nothing is raised, and nothing more comes until the
partition is assigned again. So whoever reads by confluent-kafka without a group looks now and then.
"""

from collections.abc import Iterable
from typing import Any

from confluent_kafka import OFFSET_END, KafkaException, TopicPartition


class Stalls:
    """Tells what waits unread, of the partitions that a consumer was assigned."""

    def __init__(self, consumer: Any, assigned: Iterable[TopicPartition]) -> None:
        """`assigned`: as they were given to the consumer, each with the offset to begin at."""
        self._consumer = consumer
        self._starts = {(place.topic, place.partition): place.offset for place in assigned}
        self._waiting: dict[tuple[str, int], int] = {}

    def places(self) -> list[TopicPartition]:
        """Return what is assigned, each with the next offset to read."""
        places = self._consumer.position(self._consumer.assignment())
        for place in places:
            if place.offset < 0:  # nothing came yet
                place.offset = self._starts[place.topic, place.partition]
        return list(places)

    def look(self, timeout_s: float) -> list[TopicPartition]:
        """Return the places, each with the next offset to read, where what waited at the last look still does.

        Empty where the broker does not answer within `timeout_s`: that is another matter.
        """
        before, self._waiting = self._waiting, {}
        stalled = []
        try:
            places = self.places()
            # One request for all. The watermarks of one after another would each wait behind a fetch.
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
