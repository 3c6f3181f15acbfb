"""Reads dead letters and late messages, and their redrive state, from Kafka.

All state lies on the dead-letter topics. `tamiyo dlq redrive` (`streams/admin/redrive.py`) writes notes next to the
dead letters: a claim before it republishes some, and a receipt afterwards.
"""

from collections.abc import Callable, Iterator, Sequence

from confluent_kafka import Message

from tamiyo.schemas.client.partition_reader import OffsetRange, PartitionReader
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import BY_NAME, CATALOGUE
from tamiyo.streams.admin.dead_letter import DeadLetterPartition
from tamiyo.streams.admin.topic_tail import source_name

ALL = tuple(name for topic in CATALOGUE for name in (topic.dead_letters, topic.late))
"""Every dead-letter topic, without prefix."""


class DeadLetters:
    """The dead letters of an installation. A context manager.

    Methods raise BrokerError where the broker does not respond.
    """

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        self.names = names
        self._reader = PartitionReader(kafka, names.full("tamiyo-dlq"))

    def __enter__(self) -> "DeadLetters":
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def partitions(
        self, topics: Sequence[str] = ALL, report: Callable[[str], None] = lambda _: None
    ) -> list[DeadLetterPartition]:
        """Return the partitions that hold dead letters, read to their ends.

        Args:
            topics: dead-letter topics, without prefix.
            report: called with progress.
        """
        found: list[DeadLetterPartition] = []
        existing = self._reader.topics()
        for topic in topics:
            numbers = existing.get(self.names.full(topic), [])
            partitions = [DeadLetterPartition(topic, number) for number in numbers]
            for partition in partitions:
                self.read_on(partition)
            found += [each for each in partitions if each.dead_letters]
            count = sum(len(each.dead_letters) for each in partitions)
            if count:
                report(f"{topic}: {count:,} dead letters read")
        return found

    def read_on(self, partition: DeadLetterPartition) -> None:
        """Read what was added to a partition since it was last read."""
        for message in self.messages(self.names.full(partition.letters), partition.partition, partition.next):
            partition.add(message)

    def messages(self, full: str, partition: int, first: int) -> Iterator[Message]:
        """Yield the messages of a partition (topic name with prefix) from an offset to its current end."""
        low, high = self._reader.bounds(full, partition)
        yield from self._reader.read([OffsetRange(full, partition, max(first, low), high)])

    def end(self, full: str, partition: int) -> int:
        """Return the offset that a partition's next message will have."""
        return self._reader.bounds(full, partition)[1]


def chosen(names: TopicNames, wanted: Sequence[str]) -> list[str]:
    """Return dead-letter topics, without prefix.

    Args:
        names: the installation's topic names.
        wanted: `.dlq` and `.late` topics, or topics of which both are meant, with or without prefix; none: all.

    Raises:
        ConfigurationError: the catalogue has no such topic.
    """
    found: dict[str, None] = {}
    for name in wanted:
        bare = names.bare(name)
        topic = BY_NAME.get(source_name(bare))
        if topic is None:
            raise ConfigurationError(f"no topic {name!r} in the catalogue; `tamiyo topics list` names them")
        found.update(dict.fromkeys((topic.dead_letters, topic.late) if bare == topic.name else (bare,)))
    return list(found) or list(ALL)
