"""Reads an installation's topics into a history, from the beginning and then for ever."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from tamiyo.schemas.client.partition_reader import UNRECOVERABLE, PartitionReader, Place
from tamiyo.schemas.errors import BrokerError, RegistryError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import BY_NAME, CATALOGUE, Topic
from tamiyo.streams.messages import Message
from tamiyo.streams.watch.feeds.feed import Feed
from tamiyo.streams.watch.feeds.observing import Observer
from tamiyo.streams.watch.feeds.stage_monitor import StageMonitor
from tamiyo.streams.watch.history import History, Source

BATCH = 1_000
POLL_S = 0.1
CHECK_S = 3.0  # between two checks for new topics and partitions, and whether the broker is there
COUNT_S = 1.0  # between two counts of the records in the logs
REQUEST_S = 2.0  # while a request waits, nothing is read
RETRY_S = 0.5
OPTIONS: dict[str, Any] = {
    # A broker answers at once where there is something new; the embedded one only after this time.
    "fetch.wait.max.ms": 20,
    "enable.partition.eof": True,
    "topic.metadata.refresh.interval.ms": 3_000,
    "reconnect.backoff.max.ms": 1_000,
}
GONE = (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT)


class TopicFeed(Feed):
    """Reads topics with their `.dlq` and `.late` topics; topics and partitions may appear later."""

    def __init__(
        self,
        history: History,
        kafka: KafkaSettings,
        names: TopicNames,
        *,
        since_ms: int | None = None,
        topics: Sequence[Topic] = CATALOGUE,
        run_id: str | None = None,
        follow: bool = True,
        stages: bool = True,
    ) -> None:
        """Prepare to read; nothing is requested yet.

        Args:
            history: What the topics are read into.
            kafka: How to reach the broker.
            names: The installation's topic names.
            since_ms: Kafka time from which topics are read; compacted ones are read whole. None: all.
            topics: The topics to read.
            run_id: The run whose records are decoded; None: all.
            follow: Go on with new records, for ever; else stop at the end, and end with an error where the broker
                does not respond.
            stages: Read the lag of the stages as well, every few seconds.
        """
        super().__init__(history)
        self._kafka = kafka
        self._names = names
        self._since_ms = since_ms
        self._follow = follow
        self._wanted = {
            names.full(name): topic for topic in topics for name in (topic.name, topic.dead_letters, topic.late)
        }
        self._observer = Observer(run_id)
        self._next: dict[Place, int] = {}
        """Offset to read next of each partition, by the topic's name on the broker."""
        self._first: dict[Place, int] = {}
        """Offset of the first record in the log, as far as it is known."""
        self._unread: set[Place] = set()
        """Partitions of the start that are not read to their ends yet."""
        self._since: str | None = None
        """Time of day since when nothing can be read."""
        self._refused: list[str] = []
        """Topics that this user may not read."""
        self._down = threading.Event()
        """Set by librdkafka's thread when no broker can be reached."""
        history.source = Source("topics", kafka.bootstrap_servers, names.prefix, live=follow)
        if stages and follow:
            monitor = StageMonitor(history, kafka, names, self.stopping)
            self._threads.append(threading.Thread(target=monitor.run, name="stages", daemon=True))

    def read_all(self) -> None:
        """Read until stopped; a broker that goes away is shown as a problem, and reading goes on when it is back.

        Raises:
            BrokerError: The broker does not respond, where the feed does not follow.
        """
        while not self.stopping.is_set():
            try:
                with ExitStack() as stack:
                    # A new consumer after each outage: librdkafka's may stall silently after one.
                    options = {**OPTIONS, "error_cb": self._on_error}
                    reader = stack.enter_context(PartitionReader(self._kafka, "tamiyo-watch", options))
                    self._read_with(reader)
                    return
            except (BrokerError, KafkaException) as error:
                if not self._follow:
                    raise error if isinstance(error, BrokerError) else BrokerError(_text(error)) from error
                self._report(str(error) if isinstance(error, BrokerError) else _text(error))
                self.stopping.wait(RETRY_S)

    def _read_with(self, reader: PartitionReader) -> None:
        self._down.clear()
        self._find(reader, set())
        self._show_problem()
        checked = counted = time.monotonic()
        while not self.stopping.is_set():
            self._take(self._poll(reader))
            now = time.monotonic()
            if self._down.is_set() or now - checked >= CHECK_S:
                self._find(reader, set(self._next))
                self._down.clear()
                checked = now
            if now - counted >= COUNT_S:
                self._count(reader)
                counted = now
                self.history.tick()
            if not self._unread and not self.history.source.reading and not self._follow:
                return

    # Partitions

    def _find(self, reader: PartitionReader, known: set[Place]) -> None:
        """Read the partitions that the reader does not read yet; raises BrokerError where no broker responds."""
        if not reader.consumer.assignment():  # else it would take a message
            reader.consumer.poll(0)  # librdkafka asks for a token of OAUTHBEARER in a poll only
        found = reader.consumer.list_topics(timeout=REQUEST_S).topics
        first_time = not self._next
        places = [(name, number) for name in self._wanted if name in found for number in sorted(found[name].partitions)]
        new = [place for place in places if place not in known]
        if new:
            starts = self._starts(reader, new)
            self._next.update({place: offset for place, offset in starts.items() if place not in self._next})
            reader.add(starts)
        if first_time and places:
            self._unread = set(places)
        if first_time and not places:
            self._complete()
        self._count_partitions(places)

    def _starts(self, reader: PartitionReader, places: Sequence[Place]) -> dict[Place, int]:
        """Return where to begin with each partition: where it stopped, else at the wanted time, else at the start."""
        starts = {place: self._next.get(place, 0) for place in places}
        since_ms = self._since_ms
        if since_ms is not None and not self._next:
            timed = [
                TopicPartition(*place, max(0, since_ms))
                for place in places
                if self._wanted[place[0]].cleanup == "delete"
            ]
            for each in reader.consumer.offsets_for_times(timed, timeout=10 * REQUEST_S) if timed else ():
                if each.error is not None:
                    raise KafkaException(each.error)
                place = each.topic, each.partition
                starts[place] = each.offset if each.offset >= 0 else reader.bounds(*place)[1]
        return starts

    def _complete(self) -> None:
        self._unread = set()
        self.finished()

    # Messages

    def _poll(self, reader: PartitionReader) -> Iterator[Message]:
        """Yield the messages that are there; it waits for the first one only."""
        found = reader.consumer.consume(1, POLL_S)
        # `consume` returns when it has as many messages as it may, or its time is over.
        for message in [*found, *reader.consumer.consume(BATCH, 0.0)] if found else ():
            error = message.error()
            place = (message.topic() or "", message.partition() or 0)
            if error is None:
                self._next[place] = (message.offset() or 0) + 1
                yield _message(self._names, message)
            elif error.code() == KafkaError._PARTITION_EOF:
                self._unread.discard(place)
            elif error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                self._refuse(reader, place[0])
            elif error.fatal() or error.code() in UNRECOVERABLE:
                if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    self._forget(place[0])
                raise BrokerError(f"{place[0]}/{place[1]} cannot be read: {error.str()}")

    def _refuse(self, reader: PartitionReader, topic: str) -> None:
        """Go on without a topic that this user may not read."""
        self._wanted.pop(topic, None)
        dropped = [TopicPartition(*place) for place in self._next if place[0] == topic]
        self._forget(topic)
        if dropped:
            reader.consumer.incremental_unassign(dropped)
            self._refused.append(self._names.bare(topic))
            self._show_problem()

    def _forget(self, topic: str) -> None:
        """Read a topic that was deleted from its beginning, should it come back."""
        self._next = {place: offset for place, offset in self._next.items() if place[0] != topic}
        self._unread = {place for place in self._unread if place[0] != topic}

    def _take(self, messages: Iterator[Message]) -> None:
        found = list(messages)
        while found and not self.stopping.is_set():
            try:
                observed = self._observer.observe(found)
            except RegistryError as error:
                if not self._follow:
                    raise
                self._report(f"the schema registry does not respond: {error}")
                self.stopping.wait(RETRY_S)
                continue
            self.history.source.undecodable = self._observer.undecodable
            self.history.take(observed)
            if self._since is not None:
                self._show_problem()
            break
        if not self._unread and self.history.source.reading:
            self._complete()

    # What the views show of the source

    def _count(self, reader: PartitionReader) -> None:
        """Count the records in the logs, of which librdkafka knows the bounds from what it has read."""
        in_log: dict[str, int] = {}
        left = 0
        for place, offset in self._next.items():
            low, high = reader.consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
            if high >= 0:
                low = max(0, low)
                in_log[place[0]] = in_log.get(place[0], 0) + high - low
                left += max(0, high - max(offset, low))
        counts = {self._names.bare(name): count for name, count in in_log.items()}
        total = self.history.source.records + left if self.history.source.reading else None
        self.history.update_topics(in_log=counts, total=total)

    def _count_partitions(self, places: Sequence[Place]) -> None:
        names = [self._names.bare(name) for name, _ in places]
        self.history.update_topics(partitions={name: names.count(name) for name in set(names) if name in BY_NAME})

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in GONE:
            self._down.set()

    def _show_problem(self) -> None:
        """Show which topics are left out, now that the others are read."""
        names = ", ".join(self._refused)
        problem = f"this user may not read {names}: see `tamiyo topics acls`" if names else None
        self._since = None
        if problem != self.history.source.problem:
            self.history.update_source(problem=problem)

    def _report(self, reason: str) -> None:
        """Show why nothing can be read, with the time since when."""
        self._since = self._since or datetime.now(UTC).strftime("%H:%M:%S UTC")
        problem = f"nothing can be read since {self._since}: {reason}"
        if problem != self.history.source.problem:
            self.history.update_source(problem=problem)


def _message(names: TopicNames, message: Any) -> Message:
    return Message(
        names.bare(message.topic()),
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        tuple(message.headers() or ()) if message.topic().endswith((".dlq", ".late")) else (),
    )


def _text(error: KafkaException) -> str:
    reason = error.args[0]
    return str(reason.str() if isinstance(reason, KafkaError) else reason)
