"""A recording's messages published again: as they were, and when they are due."""

import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import Producer

from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import PRODUCER, KafkaSettings, TopicNames
from tamiyo.schemas.topics import Topic
from tamiyo.streams.headers import END_MARKER, END_MARKER_KEY
from tamiyo.streams.messages import Message

OF_HEADER = "tamiyo-replay-of"
"""topic:partition:offset of the message that this one repeats."""
DELIVERY_TIMEOUT_S = 60.0
LOOK_S = 0.1


class Pace:
    """When a message is due."""

    def __init__(self, speed: float | None) -> None:
        self._speed = speed
        self._began: tuple[float, int] | None = None

    def wait(self, time_ms: int, meanwhile: Callable[[], None]) -> None:
        """Return when `time_ms` of the recording has come."""
        if self._speed is None:
            return
        if self._began is None:
            self._began = (time.monotonic(), time_ms)
        due = self._began[0] + (time_ms - self._began[1]) / 1000 / self._speed
        while (left := due - time.monotonic()) > 0:
            meanwhile()
            time.sleep(min(left, LOOK_S))


class Republisher:
    """Publishes messages as they were recorded."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        self._names = names
        self._failed: list[str] = []
        self._producer: Any = Producer(kafka.librdkafka(**PRODUCER, log_level=0))

    def send(self, message: Message) -> None:
        headers = [*message.headers, (OF_HEADER, message.place.encode())]
        self._produce(message.topic, message.partition, message.key, message.value, headers, message.timestamp_ms)

    def end(self, topic: Topic, partition: int) -> None:
        self._produce(topic.name, partition, END_MARKER_KEY, None, list(END_MARKER), 0)

    def poll(self) -> None:
        self._producer.poll(0)
        if self._failed:
            raise BrokerError(f"a message could not be published: {self._failed[0]}")

    def flush(self, meanwhile: Callable[[], None]) -> None:
        """Return once everything is delivered."""
        deadline = time.monotonic() + DELIVERY_TIMEOUT_S
        while self._producer.flush(LOOK_S):
            meanwhile()
            if time.monotonic() > deadline:
                raise BrokerError(f"{len(self._producer)} messages were not delivered in {DELIVERY_TIMEOUT_S:.0f} s")
        self.poll()

    def _produce(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: list[Any], time_ms: int
    ) -> None:
        while True:
            try:
                self._producer.produce(
                    self._names.full(topic), value, key, partition, on_delivery=self._delivered, timestamp=time_ms,
                    headers=headers,
                )  # fmt: skip
                break
            except BufferError:  # the broker is slower than the disk
                self._producer.poll(LOOK_S)
        self.poll()

    def _delivered(self, error: Any, message: Any) -> None:
        if error is not None:
            self._failed.append(f"{message.topic()}: {error.str()}")
