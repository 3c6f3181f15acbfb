"""Which part of the topics is meant, and its messages: by run, by time, by offset, up to where the logs end now."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from pydantic import BaseModel, ConfigDict, Field

from tamiyo.schemas.errors import BrokerError, ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import BY_NAME, CATALOGUE, CHECKPOINTS, CONTROL, Topic
from tamiyo.streams.messages import Message, is_end

TIMEOUT_S = 20.0
BATCH = 500
POLL_S = 0.2
SHARED = (CHECKPOINTS.name, CONTROL.name)  # their keys are not runs, so a choice of runs keeps them whole

# What follows from other topics is looked at first: then whatever is recorded of it, its causes are recorded too.
EFFECTS_FIRST = tuple(reversed([topic for topic in CATALOGUE if topic.name not in SHARED])) + tuple(
    BY_NAME[name] for name in SHARED
)


class Selection(BaseModel):
    """What to take of the topics; everything up to where they end now, unless said otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    topics: tuple[str, ...] = tuple(topic.name for topic in CATALOGUE)
    runs: tuple[str, ...] = Field((), description="Only messages under these keys; empty: all")
    since_ms: int | None = Field(None, description="Messages of this Kafka time and later; compacted topics whole")
    until_ms: int | None = Field(None, description="Messages before this Kafka time")
    offsets: Mapping[str, tuple[int | None, int | None]] = Field(
        {}, description="topic:partition to its first offset and the one after its last"
    )


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """Messages of one partition: those at `start` and later, before `end`."""

    topic: str
    partition: int
    start: int
    end: int


@dataclass(slots=True)
class _Reading:
    stretch: OffsetRange
    done: bool = False


class TopicReader:
    """Reads stretches of topics, without a group.

    Every method raises BrokerError when the broker does not answer, or lacks a topic.
    """

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        self._names = names
        self._servers = kafka.bootstrap_servers
        self._consumer = Consumer(
            kafka.librdkafka(
                **{
                    "group.id": "tamiyo-reader",
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "enable.partition.eof": True,
                    "auto.offset.reset": "error",
                    "log_level": 0,
                }
            )
        )

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    def partitions(self, topics: Sequence[Topic]) -> int:
        """Return how many partitions each of `topics` has; raises BrokerError where one is missing or differs."""
        present = self._asked(lambda: self._consumer.list_topics(timeout=TIMEOUT_S)).topics
        missing = [topic.name for topic in topics if self._names.full(topic.name) not in present]
        if missing:
            where = f" under the prefix {self._names.prefix!r}" if self._names.prefix else ""
            raise BrokerError(
                f"{self._servers} has no topic {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}{where} "
                f"({len(missing)} of {len(topics)} are missing); `tamiyo topics create` makes them"
            )
        counts = {len(present[self._names.full(topic.name)].partitions) for topic in topics}
        if len(counts) > 1:
            raise BrokerError(
                f"topics differ in their number of partitions: {sorted(counts)}; see `tamiyo topics check`"
            )
        return counts.pop()

    def resolve(self, selection: Selection) -> list[OffsetRange]:
        """Return the stretches that a selection means, as the topics are now; empty ones are left out."""
        topics = [topic for topic in EFFECTS_FIRST if topic.name in selection.topics]
        count = self.partitions(topics)
        self._check(selection, count)
        found: list[OffsetRange] = []
        for topic in topics:
            places = [TopicPartition(self._names.full(topic.name), number) for number in range(count)]
            starts, ends = self._bounds(places)
            for number in range(count):
                first, after = selection.offsets.get(f"{topic.name}:{number}", (None, None))
                low, high = starts[number], ends[number]
                if selection.since_ms is not None and topic.cleanup == "delete" and first is None:
                    low = max(low, self._at(places[number], selection.since_ms, high))
                if selection.until_ms is not None and after is None:
                    high = min(high, self._at(places[number], selection.until_ms, high))
                low, high = max(low, first or 0), min(high, high if after is None else after)
                if high > low:
                    found.append(OffsetRange(topic.name, number, low, high))
        return found

    def messages(
        self, stretches: Sequence[OffsetRange], *, runs: Sequence[str] = (), stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Message]:
        """Yield the messages of `stretches`, each stretch in order, until all are read or `stopped`."""
        wanted = {run.encode() for run in runs}
        readings = {(self._names.full(each.topic), each.partition): _Reading(each) for each in stretches}
        self._consumer.assign([TopicPartition(*place, each.stretch.start) for place, each in readings.items()])
        left = len(readings)
        while left and not stopped():
            for message in self._asked(lambda: self._consumer.consume(BATCH, POLL_S)):
                reading = readings[message.topic(), message.partition()]
                stretch = reading.stretch
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise BrokerError(f"reading {message.topic()}/{message.partition()}: {error.str()}")
                # Compaction and transactions leave gaps, so a stretch may end at the log's end, not at its last offset.
                following = message.offset() if error is not None else message.offset() + 1
                if error is None and message.offset() < stretch.end and not reading.done:
                    taken = _message(message, stretch.topic)
                    chosen = not wanted or stretch.topic in SHARED or taken.key in wanted
                    if chosen and not is_end(taken.value, taken.headers):
                        yield taken
                if following >= stretch.end and not reading.done:
                    reading.done = True
                    left -= 1
                    self._consumer.pause([TopicPartition(message.topic(), message.partition())])

    def _check(self, selection: Selection, count: int) -> None:
        for place in selection.offsets:
            topic, _, number = place.rpartition(":")
            if topic not in selection.topics:
                raise ConfigurationError(f"offsets are given for {topic}, which is not among the topics chosen")
            if int(number) >= count:
                raise ConfigurationError(f"offsets are given for {place}, but the topic has {count} partitions")

    def _bounds(self, places: Sequence[TopicPartition]) -> tuple[list[int], list[int]]:
        marks: list[tuple[int, int]] = [
            self._asked(partial(self._consumer.get_watermark_offsets, place, timeout=TIMEOUT_S)) for place in places
        ]
        return [low for low, _ in marks], [high for _, high in marks]

    def _at(self, place: TopicPartition, time_ms: int, end: int) -> int:
        """Return the first offset of that time or later, `end` where there is none."""
        asked = TopicPartition(place.topic, place.partition, max(0, time_ms))
        (found,) = self._asked(lambda: self._consumer.offsets_for_times([asked], timeout=TIMEOUT_S))
        return int(found.offset) if found.offset >= 0 else end

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except KafkaException as error:
            raise BrokerError(f"no broker answers at {self._servers}: {error.args[0].str()}") from error


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
