"""Adds partitions to an installation's topics, for `tamiyo topics grow`.

A key's partition is a hash of the key modulo the number of partitions, so most keys get another partition. On compacted
topics their old records would stay behind, and be the only ones. The steps:

1. Nothing while runs go on: a run's records would lie on two partition numbers, and no stage has both.
2. Every topic gets the partitions.
3. On each compacted topic the newest record of a key that lies on another partition than its own is published again, to
   its own.
4. After `READERS_S`, in which running processes notice the new partitions, tombstones replace the old copies.

Each step looks at what there is, so a growth that was interrupted is continued by calling it again.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aiokafka.partitioner import murmur2

from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.client.compacted import Copy, NewestByKey, copy_of
from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.errors import BrokerError, ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CATALOGUE, Topic
from tamiyo.streams.admin.runs import live_runs
from tamiyo.streams.admin.topic_findings import TopicFinding, TopicState
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.headers import POSITIONS_HEADER

READERS_S = 45.0  # hosts and the learner look for new partitions every 30 s, stages every 5 s
COMPACTED = tuple(topic for topic in CATALOGUE if topic.cleanup == "compact")


@dataclass(frozen=True, slots=True)
class Record:
    """What a message needs to be published again; for a record on its own partition nothing is kept."""

    value: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclass(frozen=True, slots=True)
class MisplacedKey:
    """A key with a record where nobody looks for it."""

    key: bytes
    own: int
    """The partition that producers choose for the key."""
    move: Copy[Record] | None
    """The newest message, if it is a record and not on its own partition."""
    remove: list[Copy[Record]]
    """Records that the newest message replaces, once it is on its own partition."""


def own_partition(key: bytes, partitions: int) -> int:
    """Return the partition that every producer chooses for a key, by murmur2.

    Example:
        >>> own_partition(b"run-1", 4), own_partition(b"run-1", 8)
        (1, 5)
    """
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


class Growth:
    """One call of `tamiyo topics grow`.

    Every method raises BrokerError where the broker does not respond or refuses; calling again continues.
    """

    def __init__(
        self, kafka: KafkaSettings, names: TopicNames, partitions: int, report: Callable[[str], None] = lambda _: None
    ) -> None:
        """Grow topics to `partitions` each, telling `report` how it goes on."""
        self._kafka = kafka
        self._names = names
        self._partitions = partitions
        self._report = report
        self._topics = Topics(kafka, names)
        self.grown: list[str] = []
        """Names of the topics that got partitions."""
        self.moved: Counter[str] = Counter()
        """Records published again, by topic."""
        self.removed: Counter[str] = Counter()
        """Old copies replaced by tombstones, by topic."""

    def check(self, *, quiet_s: float) -> None:
        """Check that the topics can be grown now.

        Args:
            quiet_s: seconds without telemetry after which a run counts as over, though it has not ended.

        Raises:
            ConfigurationError: the number does not fit, or runs go on.
        """
        if self._topics.embedded():
            raise ConfigurationError(
                "the embedded broker's topics have 4 partitions and cannot get more: use a real Kafka"
            )
        states = self._topics.states()
        self._check_topics(states)
        counts = {each.partitions for each in states}
        if self._partitions < max(counts):
            raise ConfigurationError(
                f"expected more than {max(counts)} partitions, which the topics have, got {self._partitions}: Kafka "
                "cannot take partitions away"
            )
        if counts == {self._partitions} and not any(count for _, count in misplaced(self._kafka, self._names)):
            raise ConfigurationError(
                f"expected more than {self._partitions} partitions: all topics have {self._partitions}, and every key "
                "is on its own; there is nothing to do"
            )
        live = live_runs(self._kafka, self._names, quiet_s=quiet_s)
        if live:
            shown = ", ".join(live[:5]) + (f" and {len(live) - 5} more" if len(live) > 5 else "")
            raise ConfigurationError(
                f"expected no live runs, but {len(live)} published within {quiet_s:.0f} s without an end: {shown}. In "
                "mid-flight a run would move to another partition number: wait until they end; --quiet sets after how "
                "long a killed run counts as over"
            )

    def run(self) -> None:
        """Grow the topics, and move every key to its partition.

        Raises:
            BrokerError: keys were published to their old partitions meanwhile; calling again moves them.
        """
        self.grown = self._topics.grow(self._partitions)
        self._report(f"{len(self.grown)} topics now have {self._partitions} partitions, the others had them")
        if sum(self._move(topic) for topic in COMPACTED):
            self._report(f"waiting {READERS_S:.0f} s until all processes read the new partitions")
            time.sleep(READERS_S)
            # What was published since to an old partition is newer, and is moved first.
            if late := sum(self._move(topic, remove=True) for topic in COMPACTED):
                raise BrokerError(
                    f"{late} keys were published to their old partitions meanwhile, by producers that did not know the "
                    "new ones yet: call again in some minutes to move them"
                )

    def _check_topics(self, states: list[TopicState]) -> None:
        missing = [each.name for each in states if not each.partitions]
        if missing:
            raise ConfigurationError(
                f"topics do not exist: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; `tamiyo topics "
                "create` creates them"
            )
        compacted = {self._names.full(topic.name) for topic in COMPACTED}
        stamped = [each.name for each in states if each.name in compacted and each.timestamps == "LogAppendTime"]
        if stamped:
            raise ConfigurationError(
                f"topic {stamped[0]} has message.timestamp.type=LogAppendTime, with which a tombstone would be newer "
                "than the record that it leaves: set CreateTime (`kafka-configs.sh --alter`)"
            )

    def _move(self, topic: Topic, *, remove: bool = False) -> int:
        """Publish misplaced records of a topic again; return how many keys are left to settle.

        With `remove`, the old copies of keys whose newest message is where it belongs are replaced by tombstones.
        """
        full = self._names.full(topic.name)
        producer = AwaitedProducer(self._kafka)
        left = 0
        with PartitionReader(self._kafka, self._names.full("tamiyo-grow")) as reader:
            for each in _misplaced(reader, full):
                if each.move is not None and each.move.value is not None:
                    record = each.move.value
                    producer.produce(
                        full,
                        record.value,
                        each.key,
                        partition=each.own,
                        headers=record.headers,
                        timestamp_ms=each.move.timestamp_ms + 1,
                    )
                    self.moved[topic.name] += 1
                elif remove:
                    for copy in each.remove:
                        # As old as the copy: it must not remove the newer record on the other partition.
                        time_ms = max(1, copy.timestamp_ms)  # 0 would be now
                        producer.produce(full, None, each.key, partition=copy.partition, timestamp_ms=time_ms)
                        self.removed[topic.name] += 1
                    continue
                left += 1
        producer.flush()
        done = self.removed if remove else self.moved
        if done[topic.name]:
            self._report(f"{full}: {done[topic.name]:,} {'old copies removed' if remove else 'records moved'}")
        return left


def misplaced(kafka: KafkaSettings, names: TopicNames) -> Iterator[tuple[str, int]]:
    """Yield the compacted topics that exist, each with the number of keys that have a record on a wrong partition.

    Raises:
        BrokerError: the topics cannot be read.
    """
    with PartitionReader(kafka, names.full("tamiyo-grow")) as reader:
        existing = reader.topics()
        for topic in COMPACTED:
            full = names.full(topic.name)
            if full in existing:
                yield full, sum(1 for _ in _misplaced(reader, full))


def findings(kafka: KafkaSettings, names: TopicNames) -> list[TopicFinding]:
    """Return the topics on which keys lie where nobody looks for them, as findings of `tamiyo topics check`.

    Raises:
        BrokerError: the topics cannot be read.
    """
    topics = Topics(kafka, names)
    if topics.embedded():
        return []
    most = max(each.partitions for each in topics.states())
    return [
        TopicFinding(
            "problem",
            f"topic {name} has records of {count:,} keys on other partitions than the keys' own: partitions were added "
            "without `tamiyo topics grow`, it was interrupted, or a producer does not partition by murmur2",
            f"`tamiyo topics grow --partitions {most}` moves them",
        )
        for name, count in misplaced(kafka, names)
        if count
    ]


def _misplaced(reader: PartitionReader, full: str) -> Iterator[MisplacedKey]:
    """Yield the keys of a compacted topic that have a record on another partition than their own."""
    ranges = reader.ranges(full)
    found: NewestByKey[bytes, Record] = NewestByKey()
    for message in reader.read(ranges):
        key, value = message.key(), message.value()
        if not isinstance(key, bytes):
            continue
        record = None
        if isinstance(value, bytes):
            # Positions are those of the old partition's inputs: on another one, a restart would be misled by them.
            headers = ((name, text) for name, text in message.headers() or () if name != POSITIONS_HEADER)
            at_home = message.partition() == own_partition(key, len(ranges))
            record = Record() if at_home else Record(value, tuple(headers))
        found.take(key, copy_of(message, record))
    for key in found:
        copies, own = found.copies(key), own_partition(key, len(ranges))
        newest = copies[-1]
        remove = [each for each in copies if each.value is not None and each.partition != own]
        if newest.value is None:
            remove = [each for each in copies if each.value is not None]
        if remove:
            yield MisplacedKey(key, own, newest if newest in remove else None, remove)
