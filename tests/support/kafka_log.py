"""What a test says to Kafka, and what it hears."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition

from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.kafka import PRODUCER, KafkaSettings, TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import Topic


@dataclass(frozen=True, slots=True)
class Heard:
    """One message, as it lies on the broker."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, str]

    def record(self, kind: type[Record]) -> Any:
        """Decode it."""
        return decode(self.value, kind)

    @property
    def identity(self) -> str | None:
        """The deterministic id in its headers."""
        return self.headers.get("tamiyo-id")


class KafkaLog:
    """Produces records and reads whole topics, under one prefix."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        self._names = names
        self._producer = Producer(kafka.librdkafka(**PRODUCER))
        self._config = kafka.librdkafka(**{"group.id": "nobody", "enable.auto.commit": False, "fetch.wait.max.ms": 10})

    def close(self) -> None:
        """Flush."""
        self._producer.flush(5)

    def say(self, topic: Topic, records: Iterable[Record]) -> None:
        """Produce records under their run's key and wait for their delivery."""
        self.say_raw(topic, ((str(record.run_id).encode(), encode(record)) for record in records))  # type: ignore[attr-defined]

    def say_raw(self, topic: Topic, messages: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Produce bytes."""
        for key, value in messages:
            self._producer.produce(self._names.full(topic.name), value=value, key=key)
        assert self._producer.flush(20) == 0

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Return what a group (without prefix) has committed of a topic, by partition."""
        full = self._names.full(topic)
        consumer = Consumer({**self._config, "group.id": self._names.full(group)})
        try:
            partitions = [TopicPartition(full, each) for each in consumer.list_topics(full).topics[full].partitions]
            return {
                each.partition: each.offset for each in consumer.committed(partitions, timeout=10) if each.offset >= 0
            }
        finally:
            consumer.close()

    def hear(self, topic: str) -> list[Heard]:
        """Return all that lies on a topic (without prefix) now, by partition and offset."""
        full = self._names.full(topic)
        consumer = Consumer(self._config)
        try:
            partitions = consumer.list_topics(full, timeout=10).topics[full].partitions
            left: dict[int, int] = {}
            for number in partitions:
                low, high = consumer.get_watermark_offsets(TopicPartition(full, number), timeout=10)
                if high > low:
                    left[number] = high
            consumer.assign([TopicPartition(full, number, OFFSET_BEGINNING) for number in left])
            heard: list[Heard] = []
            deadline = time.monotonic() + 20
            while left and time.monotonic() < deadline:
                message = consumer.poll(0.2)
                if message is None or message.error():
                    continue
                headers = {name: value.decode() for name, value in message.headers() or []}
                heard.append(Heard(message.partition(), message.offset(), message.key(), message.value(), headers))
                if message.offset() + 1 >= left.get(message.partition(), 0):
                    left.pop(message.partition(), None)
            return sorted(heard, key=lambda each: (each.partition, each.offset))
        finally:
            consumer.close()

    def wait_for(self, topic: str, condition: Callable[[list[Heard]], bool], *, timeout_s: float = 40.0) -> list[Heard]:
        """Read a topic again and again until `condition` holds; fails with what was there."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                heard = self.hear(topic)
            except KafkaException:  # a broker that has just come back has no leaders for a moment
                if time.monotonic() > deadline:
                    raise
                heard = []
            if condition(heard):
                return heard
            if time.monotonic() > deadline:
                raise AssertionError(f"{topic}: {len(heard)} messages after {timeout_s} s: {heard[-3:]}")
            time.sleep(0.1)
