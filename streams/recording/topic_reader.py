"""Selects messages of the topics by run, time and offset, and reads them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tamiyo.schemas.client.partition_reader import OffsetRange, PartitionReader
from tamiyo.schemas.errors import BrokerError, ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import BY_NAME, CATALOGUE, CHECKPOINTS, CONTROL, Topic
from tamiyo.streams.messages import Message, is_end

SHARED = (CHECKPOINTS.name, CONTROL.name)  # their keys are not runs, so a selection of runs keeps them whole

# Ends are read of outputs before inputs: then for every output that is recorded, its inputs are recorded too.
OUTPUTS_FIRST = tuple(reversed([topic for topic in CATALOGUE if topic.name not in SHARED])) + tuple(
    BY_NAME[name] for name in SHARED
)


class Selection(BaseModel):
    """A part of the topics; by default everything up to their current ends."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    topics: tuple[str, ...] = tuple(topic.name for topic in CATALOGUE)
    runs: tuple[str, ...] = Field((), description="Only messages under these keys; empty: all")
    since_ms: int | None = Field(None, description="Messages of this Kafka time and later; compacted topics whole")
    until_ms: int | None = Field(None, description="Messages before this Kafka time")
    offsets: Mapping[str, tuple[int | None, int | None]] = Field(
        {}, description="topic:partition to its first offset and the one after its last"
    )


class TopicReader:
    """Reads ranges of an installation's topics; topics are named without prefix.

    Every method raises BrokerError where the broker does not respond, or lacks a topic.
    """

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        self._names = names
        self._servers = kafka.bootstrap_servers
        # A recording must not skip a range that has expired meanwhile.
        self._reader = PartitionReader(kafka, options={"auto.offset.reset": "error"})

    def close(self) -> None:
        """Disconnect."""
        self._reader.close()

    def cluster_id(self) -> str | None:
        """Return the id of the broker's cluster."""
        return self._reader.cluster_id()

    def partitions(self, topics: Sequence[Topic]) -> int:
        """Return how many partitions each of `topics` has; raises BrokerError where one is missing or differs."""
        present = self._reader.topics()
        missing = [topic.name for topic in topics if self._names.full(topic.name) not in present]
        if missing:
            where = f" under the prefix {self._names.prefix!r}" if self._names.prefix else ""
            raise BrokerError(
                f"{self._servers} has no topic {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}{where} "
                f"({len(missing)} of {len(topics)} are missing); `tamiyo topics create` creates them"
            )
        counts = {len(present[self._names.full(topic.name)]) for topic in topics}
        if len(counts) > 1:
            raise BrokerError(
                f"topics differ in their number of partitions: {sorted(counts)}; see `tamiyo topics check`"
            )
        return counts.pop()

    def resolve(self, selection: Selection) -> list[OffsetRange]:
        """Return the offsets that a selection refers to now, without empty ranges."""
        topics = [topic for topic in OUTPUTS_FIRST if topic.name in selection.topics]
        count = self.partitions(topics)
        self._check(selection, count)
        found: list[OffsetRange] = []
        for topic in topics:
            full = self._names.full(topic.name)
            bounds = [self._reader.bounds(full, number) for number in range(count)]
            for number, (low, high) in enumerate(bounds):
                first, after = selection.offsets.get(f"{topic.name}:{number}", (None, None))
                start, end = low, high
                if selection.since_ms is not None and topic.cleanup == "delete" and first is None:
                    start = max(low, self._offset_at(full, number, selection.since_ms, high))
                if selection.until_ms is not None and after is None:
                    end = min(high, self._offset_at(full, number, selection.until_ms, high))
                start, end = max(start, first or 0), min(end, high if after is None else after)
                if end > start:
                    found.append(OffsetRange(topic.name, number, start, end))
        return found

    def messages(
        self, ranges: Sequence[OffsetRange], *, runs: Sequence[str] = (), stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Message]:
        """Yield the messages of `ranges`, each range in order, until all are read or `stopped`.

        End markers of a replay are left out.
        """
        wanted = {run.encode() for run in runs}
        renamed = [replace(each, topic=self._names.full(each.topic)) for each in ranges]
        # However long a broker is away, a recording waits for it: Ctrl-C ends it, and it can be continued.
        for each in self._reader.read(renamed, timeout_s=None, stopped=stopped):
            message = _message(each, self._names.bare(each.topic() or ""))
            selected = not wanted or message.topic in SHARED or message.key in wanted
            if selected and not is_end(message.value, message.headers):
                yield message

    def _check(self, selection: Selection, count: int) -> None:
        for place in selection.offsets:
            topic, _, number = place.rpartition(":")
            if topic not in selection.topics:
                raise ConfigurationError(f"offsets are given for {topic}, which is not among the selected topics")
            if int(number) >= count:
                raise ConfigurationError(f"offsets are given for {place}, but the topic has {count} partitions")

    def _offset_at(self, full: str, partition: int, time_ms: int, end: int) -> int:
        """Return the first offset of that time or later, `end` where there is none."""
        found = self._reader.offset_at(full, partition, time_ms)
        return end if found is None else found


def _message(message: Any, topic: str) -> Message:
    headers = tuple((name, value) for name, value in message.headers() or ())
    return Message(
        topic,
        message.partition(),
        message.offset(),
        max(0, message.timestamp()[1]),
        message.key(),
        message.value(),
        headers,
    )
