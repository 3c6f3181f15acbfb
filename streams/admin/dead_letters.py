"""Reads dead letters and their redrive state from Kafka.

All state lies on the dead-letter topics. `tamiyo dlq redrive` (`streams/admin/redrive.py`) writes notes next to the
dead letters: a claim before it republishes some, and a receipt afterwards.
"""

from collections.abc import Callable, Iterator, Sequence

from confluent_kafka import Message

from tamiyo.schemas.client.partition_reader import OffsetRange, PartitionReader
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import BY_NAME, CATALOGUE, Topic
from tamiyo.streams.admin.dead_letter import DeadLetterPartition


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
        self, topics: Sequence[Topic] = CATALOGUE, report: Callable[[str], None] = lambda _: None
    ) -> list[DeadLetterPartition]:
        """Return the partitions that hold dead letters, read to their ends; calls `report` with progress."""
        found: list[DeadLetterPartition] = []
        existing = self._reader.topics()
        for topic in topics:
            numbers = existing.get(self.names.full(topic.dead_letters), [])
            partitions = [DeadLetterPartition(topic, number) for number in numbers]
            for partition in partitions:
                self.read_on(partition)
            found += [each for each in partitions if each.dead_letters]
            count = sum(len(each.dead_letters) for each in partitions)
            if count:
                report(f"{topic.dead_letters}: {count:,} dead letters read")
        return found

    def read_on(self, partition: DeadLetterPartition) -> None:
        """Read what was added to a partition since it was last read."""
        for message in self.messages(
            self.names.full(partition.topic.dead_letters), partition.partition, partition.next
        ):
            partition.add(message)

    def messages(self, full: str, partition: int, first: int) -> Iterator[Message]:
        """Yield the messages of a partition (topic name with prefix) from an offset to its current end."""
        low, high = self._reader.bounds(full, partition)
        yield from self._reader.read([OffsetRange(full, partition, max(first, low), high)])

    def end(self, full: str, partition: int) -> int:
        """Return the offset that a partition's next message will have."""
        return self._reader.bounds(full, partition)[1]


def chosen(names: TopicNames, wanted: Sequence[str]) -> list[Topic]:
    """Return the topics of these names, with or without `.dlq` and the prefix; all topics if none is named.

    Raises ConfigurationError for a name that is not in the catalogue.
    """
    found = []
    for name in wanted:
        bare = names.bare(name).removesuffix(".dlq")
        if bare not in BY_NAME:
            raise ConfigurationError(f"no topic {name!r} in the catalogue; `tamiyo topics list` names them")
        found.append(BY_NAME[bare])
    return found or list(CATALOGUE)
