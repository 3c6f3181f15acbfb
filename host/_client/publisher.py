"""Publish records to Kafka from a background thread: the training loop never waits for a broker."""

from __future__ import annotations

import logging
import queue
import threading
import time

from confluent_kafka import KafkaError, Message, Producer

from tamiyo.host._client.outage import Outage
from tamiyo.host._client.transport import Make
from tamiyo.schemas.client.tracing import Traces
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import RegistryError
from tamiyo.schemas.kafka import MAX_MESSAGE_BYTES, PRODUCER, KafkaSettings, TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import Topic

__all__ = ["KafkaPublisher"]

log = logging.getLogger(__name__)

_RETRY_S = 1.0  # between two requests to an unreachable schema registry
_PERIOD_S = 0.05
"""Seconds between two looks into the queue. A thread that woke up for every record would take the interpreter from
the training loop several times a frame, and librdkafka would send a request for each."""
_BY_KEY = -1
"""Kafka's "choose the partition by the key"."""
_TOO_LARGE = (
    "a record for %s was dropped, and so will be others like it: it has %d bytes, and a message may have %d; training "
    "continues. Watch fewer layers: attach(..., layers=...)"
)


class KafkaPublisher:
    """A bounded queue, a thread that makes, encodes and produces records, and a confluent-kafka producer.

    The key of every record is the run's id. It chooses the partition of the first record; all others go to the same
    one, so that a run stays on its partition even if somebody adds partitions meanwhile. If the broker or the schema
    registry is down or slow, records wait in the queue; once it is full, further ones are dropped and counted, with one
    warning.
    """

    def __init__(
        self, run_id: str, kafka: KafkaSettings, topics: TopicNames, *, capacity: int, traces: Traces | None = None
    ) -> None:
        """Start the thread.

        Args:
            run_id: Key of every record.
            kafka: How to reach the brokers.
            topics: Full names of the topics.
            capacity: Records that may wait here, and as many again in librdkafka's queue.
            traces: Record a span of each step and each adaptation; None where there are none.
        """
        self._key = run_id.encode()
        self._topics = topics
        self._traces = traces
        self._queue: queue.Queue[tuple[Topic, Make]] = queue.Queue(maxsize=capacity)
        self._hurry = threading.Event()
        """Set to end the present wait."""
        self._stopping = False
        self._published = 0
        self._dropped = 0  # by the training thread
        self._failed = 0  # by the background thread
        self._busy_seconds = 0.0
        self._warned: set[str] = set()
        self._outage = Outage(log)
        self._partition = _BY_KEY
        self._closed = False
        self._abandoned = threading.Event()
        settings = {
            **PRODUCER,
            "queue.buffering.max.messages": capacity,
            "error_cb": self._outage.on_error,
            "log_level": 0,  # errors reach the callback above; librdkafka itself would write to stderr
            "client.id": "tamiyo-host",
        }
        self._producer = Producer(kafka.librdkafka(**settings))
        self._thread = threading.Thread(target=self._run, name="tamiyo-publisher", daemon=True)
        self._thread.start()

    @property
    def published(self) -> int:
        """Number of records that Kafka has acknowledged."""
        return self._published

    @property
    def dropped(self) -> int:
        """Number of records lost: the queue was full, delivery failed, or the record was invalid."""
        return self._dropped + self._failed

    @property
    def busy_seconds(self) -> float:
        """Processor time of the background thread, seconds."""
        return self._busy_seconds

    def publish(self, topic: Topic, make: Make) -> None:
        """Queue a record; returns at once and never raises."""
        if self._closed:
            self._dropped += 1
            return
        try:
            self._queue.put_nowait((topic, make))
        except queue.Full:
            self._dropped += 1
            self._warn_once("full", "the queue of %d records is full: dropping further ones", self._queue.maxsize)

    def flush(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds until every queued record was delivered or dropped; return whether so."""
        deadline = time.monotonic() + timeout_s
        while self._queue.unfinished_tasks or len(self._producer):
            self._hurry.set()
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.005)
        return True

    def close(self, timeout_s: float) -> None:
        """Flush for at most `timeout_s` seconds, drop the rest, and stop the thread."""
        if self._closed:
            return
        self._closed = True
        if not self.flush(timeout_s):
            self._abandon()
        self._stopping = True
        self._hurry.set()
        self._thread.join(timeout=2.0)

    def _abandon(self) -> None:
        """Drop what is queued here and in librdkafka, which reports its drops as failed deliveries."""
        self._abandoned.set()
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                break
            self._queue.task_done()
            self._dropped += 1
        self._producer.purge()
        self._producer.poll(0.1)

    def _run(self) -> None:
        while not self._stopping:
            self._hurry.wait(_PERIOD_S)
            self._hurry.clear()
            self._send_queued()
            self._producer.poll(0)
            self._busy_seconds = time.thread_time()

    def _send_queued(self) -> None:
        while True:
            try:
                topic, make = self._queue.get_nowait()
            except queue.Empty:
                return
            try:
                self._send(topic, make)
            except Exception as error:  # one invalid record must not stop the thread
                self._failed += 1
                self._warn_once("record", "a record was dropped: %s: %s", type(error).__name__, error)
            finally:
                self._queue.task_done()

    def _send(self, topic: Topic, make: Make) -> None:
        record = make()
        value = self._encode(record)
        if len(value) > MAX_MESSAGE_BYTES:
            self._failed += 1
            self._warn_once(f"size of {topic.name}", _TOO_LARGE, topic.name, len(value), MAX_MESSAGE_BYTES)
            return
        headers = None if self._traces is None else self._traces.from_host(topic.name, record)
        self._producer.produce(
            self._topics.full(topic.name),
            value,
            key=self._key,
            partition=self._partition,
            headers=headers,
            on_delivery=self._on_delivery,
        )

    def _encode(self, record: Record) -> bytes:
        """Encode a record, retrying while the schema registry is unreachable."""
        while True:
            try:
                return encode(record)
            except RegistryError as error:
                if not error.temporary or self._abandoned.wait(_RETRY_S):
                    raise
                self._warn_once("registry", "records wait for the schema registry: %s; training continues", error)
                self._producer.poll(0)

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self._published += 1
            self._outage.end()
            if self._partition == _BY_KEY:
                self._partition = message.partition() or 0
        else:
            self._failed += 1
            # Under each error once: one that passes must not hide one that lasts.
            self._warn_once(f"delivery: {error.name()}", "records were not delivered: %s", error)

    def _warn_once(self, subject: str, message: str, *values: object) -> None:
        if subject not in self._warned:
            self._warned.add(subject)
            log.warning(message, *values)
