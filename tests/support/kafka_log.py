"""Publishes records in tests and reads topics whole."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import Topic


@dataclass(frozen=True, slots=True)
class LoggedMessage:
    """One message on the broker."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, str]
    """As text; of a name that is repeated, the last."""
    raw_headers: tuple[tuple[str, bytes | None], ...] = ()

    def record(self, kind: type[Record]) -> Any:
        """Decode the value."""
        return decode(self.value, kind)

    @property
    def identity(self) -> str | None:
        """The deterministic id in its headers."""
        return self.headers.get("tamiyo-id")


class KafkaLog:
    """Publishes records and reads whole topics, under one prefix."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        self._kafka = kafka
        self._names = names
        self._producer = AwaitedProducer(kafka, timeout_s=20)
        self._reader = PartitionReader(kafka, options={"fetch.wait.max.ms": 10})

    def close(self) -> None:
        """Disconnect."""
        self._reader.close()

    def publish(self, topic: Topic, records: Iterable[Record]) -> None:
        """Publish records under their run's key and wait for their delivery."""
        self.publish_bytes(topic, ((str(record.run_id).encode(), encode(record)) for record in records))  # type: ignore[attr-defined]

    def publish_bytes(self, topic: Topic, messages: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Publish keys and values as they are."""
        for key, value in messages:
            self._producer.produce(self._names.full(topic.name), value, key)
        self._producer.flush()

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Return what a group (without prefix) has committed of a topic, by partition."""
        full = self._names.full(topic)
        with PartitionReader(self._kafka, self._names.full(group)) as reader:
            places = [(full, number) for number in reader.partitions(full)]
            return {number: offset for (_, number), offset in reader.committed(places).items()}

    def read(self, topic: str) -> list[LoggedMessage]:
        """Return everything on a topic (without prefix) now, by partition and offset."""
        found = []
        message: Any
        for message in self._reader.read(self._reader.ranges(self._names.full(topic)), timeout_s=20):
            raw = tuple(message.headers() or ())
            headers = {name: (value or b"").decode(errors="replace") for name, value in raw}
            where = (message.partition(), message.offset())
            found.append(LoggedMessage(*where, message.key(), message.value(), headers, raw))
        return sorted(found, key=lambda each: (each.partition, each.offset))

    def wait_for(
        self, topic: str, condition: Callable[[list[LoggedMessage]], bool], *, timeout_s: float = 40.0
    ) -> list[LoggedMessage]:
        """Read a topic again and again until `condition` holds; fails with what was there."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                found = self.read(topic)
            except BrokerError:
                if time.monotonic() > deadline:
                    raise
                found = []
            if condition(found):
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"{topic}: {len(found)} messages after {timeout_s} s: {found[-3:]}")
            time.sleep(0.1)
