"""The other end of a replay: what its last stage says, and when that is all."""

from collections.abc import Sequence
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import Topic
from tamiyo.streams.messages import is_end

BATCH = 500


class LastStage:
    """Follows what the last stage publishes: how much, and whether every partition has ended."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames, topics: Sequence[Topic]) -> None:
        self._names = names
        self._topics = topics
        self._open: set[tuple[str, int]] = set()
        self.count = 0
        self._consumer: Any = Consumer(
            kafka.librdkafka(**{"group.id": "tamiyo-reader", "enable.auto.commit": False, "log_level": 0})
        )

    def __enter__(self) -> "LastStage":
        for topic in self._topics:
            full = self._names.full(topic.name)
            numbers = self._consumer.list_topics(full, timeout=20).topics[full].partitions
            self._open |= {(full, number) for number in numbers}
        self._consumer.assign([TopicPartition(*each, OFFSET_BEGINNING) for each in self._open])
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    @property
    def ended(self) -> bool:
        return not self._open

    @property
    def partitions_left(self) -> int:
        return len(self._open)

    def read(self, timeout_s: float) -> None:
        for message in self._consumer.consume(BATCH, timeout_s):
            if message.error():
                continue  # the client tries again by itself
            if is_end(message.value(), message.headers()):
                self._open.discard((message.topic(), message.partition()))
            else:
                self.count += 1
