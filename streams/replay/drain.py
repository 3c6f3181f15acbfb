"""Follows the last stage of a replay until its outputs have ended."""

from collections.abc import Sequence

from tamiyo.schemas.client.partition_reader import BATCH, PartitionReader, Place
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import Topic
from tamiyo.streams.messages import is_end


class LastStage:
    """Counts the outputs of the last stage, and the partitions without an end marker. A context manager."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames, topics: Sequence[Topic]) -> None:
        self._topics = [names.full(topic.name) for topic in topics]
        self._open: set[Place] = set()
        self._reader = PartitionReader(kafka)
        self.count = 0
        """Outputs read so far, without end markers."""

    def __enter__(self) -> "LastStage":
        self._open = {(topic, number) for topic in self._topics for number in self._reader.partitions(topic)}
        self._reader.assign(dict.fromkeys(self._open, 0))
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    @property
    def ended(self) -> bool:
        """Whether every partition has its end marker."""
        return not self._open

    @property
    def partitions_left(self) -> int:
        """Number of partitions without an end marker."""
        return len(self._open)

    def read(self, timeout_s: float) -> None:
        """Read what has been published since the last call, for up to `timeout_s`."""
        for message in self._reader.poll(BATCH, timeout_s):
            if is_end(message.value(), message.headers()):
                self._open.discard((message.topic() or "", message.partition() or 0))
            else:
                self.count += 1
