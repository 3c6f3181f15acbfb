"""Publishes recorded messages again, unchanged, at the pace of the recording or a multiple of it."""

import time
from collections.abc import Callable

from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import Topic
from tamiyo.streams.headers import END_MARKER, END_MARKER_KEY
from tamiyo.streams.messages import Message

OF_HEADER = "tamiyo-replay-of"
"""topic:partition:offset of the recorded message that this one repeats."""
DELIVERY_TIMEOUT_S = 60.0
POLL_S = 0.1


class Pace:
    """Delays messages to a multiple of the recorded speed."""

    def __init__(self, speed: float | None) -> None:
        """`speed`: multiple of the recorded speed; None: no delay."""
        self._speed = speed
        self._start: tuple[float, int] | None = None

    def wait(self, time_ms: int, meanwhile: Callable[[], None]) -> None:
        """Return once `time_ms` of the recording is due; calls `meanwhile` until then."""
        if self._speed is None:
            return
        if self._start is None:
            self._start = (time.monotonic(), time_ms)
        due = self._start[0] + (time_ms - self._start[1]) / 1000 / self._speed
        while (left := due - time.monotonic()) > 0:
            meanwhile()
            time.sleep(min(left, POLL_S))


class Republisher:
    """Publishes recorded messages with their bytes, key, partition and time. Methods raise BrokerError."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        self._names = names
        self._producer = AwaitedProducer(kafka, timeout_s=DELIVERY_TIMEOUT_S)

    def send(self, message: Message) -> None:
        """Publish a recorded message."""
        self._producer.produce(
            self._names.full(message.topic),
            message.value,
            message.key,
            partition=message.partition,
            headers=[*message.headers, (OF_HEADER, message.place.encode())],
            timestamp_ms=message.timestamp_ms,
        )

    def end(self, topic: Topic, partition: int) -> None:
        """Publish the end marker of a partition."""
        self._producer.produce(
            self._names.full(topic.name), None, END_MARKER_KEY, partition=partition, headers=END_MARKER
        )

    def poll(self) -> None:
        """Raise BrokerError if a delivery has failed."""
        self._producer.poll()

    def flush(self, meanwhile: Callable[[], None]) -> None:
        """Return once everything is delivered; calls `meanwhile` until then."""
        self._producer.flush(meanwhile)
