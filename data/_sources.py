"""Where messages come from: the topics of an installation, or a recording of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tamiyo.schemas.client.partition_reader import OffsetRange
from tamiyo.schemas.errors import RecordingError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import Topic
from tamiyo.streams.admin.brokers import is_embedded
from tamiyo.streams.messages import Message
from tamiyo.streams.recording.recording import Recording
from tamiyo.streams.recording.topic_reader import OUTPUTS_FIRST, SHARED, Selection, TopicReader

Stopped = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Choice:
    """Selects messages of any topic, as `tamiyo record` does."""

    runs: tuple[str, ...] = ()
    """Only messages under these keys, policies and orders whole; empty: all."""
    since_ms: int | None = None
    """From the first message of this Kafka time on, in each partition; compacted topics whole."""
    until_ms: int | None = None
    """Up to the first message of this Kafka time."""


class Plan(Protocol):
    """The messages of one topic that are to be read."""

    @property
    def topic(self) -> Topic:
        """Return the topic."""

    @property
    def count(self) -> int:
        """Return about how many there are."""

    def messages(self, stopped: Stopped) -> Iterator[Message]:
        """Yield them, one partition after the other, until all are read or `stopped`."""


class Source(Protocol):
    """Topics to read. Methods raise BrokerError or RecordingError where they cannot be read."""

    def has(self, topic: Topic) -> bool:
        """Return whether it has the topic."""

    def plan(self, topics: Sequence[Topic], choice: Choice) -> dict[Topic, Plan]:
        """Return what there is now of topics."""

    def close(self) -> None:
        """Disconnect."""


def cut(messages: Iterator[Message], topic: Topic, choice: Choice) -> Iterator[Message]:
    """Yield the messages of one partition between the offsets that a broker finds for the times of a choice."""
    begun = choice.since_ms is None or topic.cleanup == "compact"
    since, until = choice.since_ms or 0, choice.until_ms
    for message in messages:
        if until is not None and message.timestamp_ms >= until:
            return
        begun = begun or message.timestamp_ms >= since
        if begun:
            yield message


@dataclass(frozen=True, slots=True)
class _TopicPlan:
    topic: Topic
    reader: TopicReader
    ranges: Sequence[OffsetRange]
    choice: Choice

    @property
    def count(self) -> int:
        return sum(each.end - each.start for each in self.ranges)

    def messages(self, stopped: Stopped) -> Iterator[Message]:
        for each in self.ranges:  # one after the other: the same topic gives the same rows in the same order
            yield from cut(
                self.reader.messages([each], runs=self.choice.runs, stopped=stopped), self.topic, self.choice
            )


class TopicSource:
    """The topics of an installation."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        """Connect.

        Args:
            kafka: The broker.
            names: The installation's topic names.
        """
        self._reader = TopicReader(kafka, names)

    def has(self, topic: Topic) -> bool:
        """Return True: a topic that the broker lacks is an error, which `plan` raises."""
        return True

    def plan(self, topics: Sequence[Topic], choice: Choice) -> dict[Topic, Plan]:
        """Return the offsets of topics now; raises BrokerError where the broker lacks a topic."""
        plans: dict[Topic, Plan] = {}
        times = {"since_ms": choice.since_ms, "until_ms": choice.until_ms}
        if is_embedded(self._reader.cluster_id()):
            times = {}  # it finds no offsets by time: what is read is cut
        for topic in sorted(topics, key=OUTPUTS_FIRST.index):
            ranges = self._reader.resolve(Selection(topics=(topic.name,), **times))
            plans[topic] = _TopicPlan(topic, self._reader, ranges, choice)
        return plans

    def close(self) -> None:
        """Disconnect."""
        self._reader.close()


@dataclass(frozen=True, slots=True)
class _RecordingPlan:
    topic: Topic
    recording: Recording
    choice: Choice

    @property
    def count(self) -> int:
        return self.recording.count([self.topic])

    def messages(self, stopped: Stopped) -> Iterator[Message]:
        runs = {run.encode() for run in self.choice.runs} if self.topic.name not in SHARED else set()
        for part in sorted(self.recording.parts([self.topic]), key=lambda each: each.partition):
            for message in cut(self.recording.messages(self.topic, part.partition), self.topic, self.choice):
                if stopped():
                    return
                if not runs or message.key in runs:
                    yield message


class RecordingSource:
    """A recording's folder."""

    def __init__(self, folder: Path) -> None:
        """Open it.

        Args:
            folder: As `tamiyo record` writes it.

        Raises:
            RecordingError: It is no finished recording.
        """
        self._recording = Recording(folder)

    def has(self, topic: Topic) -> bool:
        """Return whether the topic was selected when it was recorded."""
        return topic.name in self._recording.manifest.selection.topics

    def plan(self, topics: Sequence[Topic], choice: Choice) -> dict[Topic, Plan]:
        """Return the files of topics; raises RecordingError where a topic is missing, or a file is damaged."""
        missing = [topic.name for topic in topics if not self.has(topic)]
        if missing:
            recorded = ", ".join(self._recording.manifest.selection.topics)
            raise RecordingError(
                f"{self._recording.folder} was recorded without {', '.join(missing)}; it has {recorded}"
            )
        self._recording.verify(topics)
        return {topic: _RecordingPlan(topic, self._recording, choice) for topic in topics}

    def close(self) -> None:
        """Do nothing: files are closed after each part."""
