"""Reads what a listing of runs needs, once: of each run's frames only a sample and the newest."""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from tamiyo.schemas.client.partition_reader import OffsetRange, PartitionReader
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CONTROL, DECISIONS, MODEL_PERFORMANCE, OUTCOMES, REWARDS, TOPOLOGY, Topic
from tamiyo.streams.admin.brokers import is_embedded
from tamiyo.streams.messages import Message
from tamiyo.streams.watch.feeds.feed import Feed
from tamiyo.streams.watch.feeds.observing import Observer
from tamiyo.streams.watch.history import History, Source

NEEDED: tuple[Topic, ...] = (TOPOLOGY, CONTROL, DECISIONS, OUTCOMES, REWARDS, MODEL_PERFORMANCE)
SAMPLE = 32  # frames of a run, for a sparkline; of any of them, as not every frame has a validation loss
NEWEST = 16  # frames of a run, for its step, losses and whether it has ended
BATCH = 500


@dataclass(slots=True)
class SampledFrames:
    """Messages of one run, of which a random sample and the newest are kept."""

    choice: random.Random
    count: int = 0
    sample: list[tuple[int, Message]] = field(default_factory=list)
    newest: deque[tuple[int, Message]] = field(default_factory=lambda: deque(maxlen=NEWEST))

    def take(self, message: Message) -> None:
        """Take the next message; every one is in the sample with the same probability."""
        entry = (self.count, message)
        self.count += 1
        self.newest.append(entry)
        if len(self.sample) < SAMPLE:
            self.sample.append(entry)
        elif (place := self.choice.randrange(self.count)) < SAMPLE:
            self.sample[place] = entry

    def kept(self) -> list[Message]:
        """Return the kept messages in their order."""
        return [message for _, message in sorted(dict([*self.sample, *self.newest]).items())]


class ListingFeed(Feed):
    """Reads topologies, orders, decisions and their results, and a sample of the frames, up to the topics' ends."""

    def __init__(
        self, history: History, kafka: KafkaSettings, names: TopicNames, *, since_ms: int | None = None
    ) -> None:
        """Prepare to read; nothing is requested yet.

        Args:
            history: What is read into.
            kafka: How to reach the broker.
            names: The installation's topic names.
            since_ms: Kafka time from which topics are read; compacted ones are read whole. None: all.
        """
        super().__init__(history)
        self._kafka = kafka
        self._names = names
        self._since_ms = since_ms
        self._observer = Observer()
        self._read_so_far = 0
        history.source = Source("topics", kafka.bootstrap_servers, names.prefix, live=True)

    def read_all(self) -> None:
        """Read up to the ends that the topics had at the start.

        Raises:
            BrokerError: The broker does not respond.
        """
        # The same sample each time, so that a listing repeats.
        choice = random.Random(0)
        frames: dict[bytes, SampledFrames] = {}
        with PartitionReader(self._kafka, "tamiyo-runs") as reader:
            ranges = self._ranges(reader)
            self.history.update_topics(total=sum(each.end - each.start for each in ranges))
            messages = reader.read(ranges, stopped=self.stopping.is_set)
            while batch := list(islice(messages, BATCH)):
                taken = []
                for message in map(self._message, batch):
                    if message.topic != MODEL_PERFORMANCE.name:
                        taken.append(message)
                    elif message.key is not None:
                        frames.setdefault(message.key, SampledFrames(choice)).take(message)
                self._take(taken, len(batch))
        for run in frames.values():
            if self.stopping.is_set():
                return
            self._take(run.kept(), 0)
        self.finished()

    def _take(self, messages: Sequence[Message], read: int) -> None:
        self._read_so_far += read
        self.history.take(self._observer.observe(messages))
        self.history.update_source(records=self._read_so_far, undecodable=self._observer.undecodable)

    def _ranges(self, reader: PartitionReader) -> list[OffsetRange]:
        existing = reader.topics()
        timed = self._since_ms is not None and not is_embedded(reader.cluster_id())  # which finds no offsets by time
        found = []
        for topic in NEEDED:
            full = self._names.full(topic.name)
            for number in existing.get(full, ()):
                whole = OffsetRange(full, number, *reader.bounds(full, number))
                found.append(self._since(reader, whole) if timed and topic.cleanup == "delete" else whole)
        return found

    def _since(self, reader: PartitionReader, whole: OffsetRange) -> OffsetRange:
        start = reader.offset_at(whole.topic, whole.partition, self._since_ms or 0)
        return replace(whole, start=whole.end if start is None else max(whole.start, min(start, whole.end)))

    def _message(self, message: Any) -> Message:
        return Message(
            self._names.bare(message.topic()),
            message.partition(),
            message.offset(),
            message.timestamp()[1],
            message.key(),
            message.value(),
            (),
        )
