"""Records to Kafka from a background thread: the training loop never waits for a broker."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from confluent_kafka import KafkaError, Producer

from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import RegistryError
from tamiyo.schemas.kafka import PRODUCER, KafkaSettings, TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import Topic

log = logging.getLogger(__name__)

Make = Callable[[], Record]

_RETRY_S = 1.0  # between two questions to a schema registry that does not answer


class Publisher(Protocol):
    """Where an attached run's records go."""

    @property
    def published(self) -> int:
        """Records delivered."""

    @property
    def dropped(self) -> int:
        """Records given up: the queue was full, the broker never took them, or they broke their contract."""

    @property
    def busy_seconds(self) -> float:
        """Processor time that making and sending records has taken beside the training loop."""

    def publish(self, topic: Topic, make: Make) -> None:
        """Hand over a record, made in the background; returns at once and never raises."""

    def flush(self, timeout_s: float) -> bool:
        """Wait, at most so long, until everything handed over was delivered or dropped; whether it was."""

    def close(self, timeout_s: float) -> None:
        """Flush, give up the rest, stop."""


class KafkaPublisher:
    """A bounded queue, one thread that makes, encodes and produces, and a confluent-kafka producer.

    The key of every record is the run's id. A broker or a schema registry that is down or slow costs records, never
    time: they wait in the queue, further ones are dropped and counted, and the log says so once.
    """

    def __init__(self, run_id: str, kafka: KafkaSettings, topics: TopicNames, *, capacity: int) -> None:
        self._key = run_id.encode()
        self._topics = topics
        self._queue: queue.Queue[tuple[Topic, Make] | None] = queue.Queue(maxsize=capacity)
        self._published = 0
        self._dropped = 0  # by the training thread
        self._failed = 0  # by the background thread
        self._busy_seconds = 0.0
        self._said: set[str] = set()
        self._closed = False
        self._abandoned = threading.Event()
        settings = {
            **PRODUCER,
            "queue.buffering.max.messages": capacity,
            "error_cb": self._on_error,
            "log_level": 0,  # the callback above tells; librdkafka itself would write to stderr
            "client.id": "tamiyo-host",
        }
        self._producer = Producer(kafka.librdkafka(**settings))
        self._thread = threading.Thread(target=self._run, name="tamiyo-publisher", daemon=True)
        self._thread.start()

    @property
    def published(self) -> int:
        return self._published

    @property
    def dropped(self) -> int:
        return self._dropped + self._failed

    @property
    def busy_seconds(self) -> float:
        return self._busy_seconds

    def publish(self, topic: Topic, make: Make) -> None:
        if self._closed:
            self._dropped += 1
            return
        try:
            self._queue.put_nowait((topic, make))
        except queue.Full:
            self._dropped += 1
            self._say("full", "%d records wait for Kafka already: further ones are dropped", self._queue.maxsize)

    def flush(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self._queue.unfinished_tasks or len(self._producer):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.005)
        return True

    def close(self, timeout_s: float) -> None:
        if self._closed:
            return
        self._closed = True
        if not self.flush(timeout_s):
            self._abandon()
        self._queue.put(None)
        self._thread.join(timeout=2.0)

    def _abandon(self) -> None:
        """Drop what is still waiting: here, and in librdkafka's own queue (whose drops are told as failed)."""
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
        while True:
            try:
                item = self._queue.get(timeout=0.05)
            except queue.Empty:
                self._producer.poll(0)
                continue
            try:
                if item is None:
                    self._producer.poll(0)
                    return
                self._send(*item)
            except Exception as error:  # a record that cannot be made must cost no other record, let alone the run
                self._failed += 1
                self._say("record", "a record could not be published: %s: %s", type(error).__name__, error)
            finally:
                self._queue.task_done()
            self._producer.poll(0)
            self._busy_seconds = time.thread_time()

    def _send(self, topic: Topic, make: Make) -> None:
        value = self._encode(make())
        self._producer.produce(self._topics.full(topic.name), value, key=self._key, on_delivery=self._on_delivery)

    def _encode(self, record: Record) -> bytes:
        """Encode a record, with the patience that the schema registry needs where there is one."""
        while True:
            try:
                return encode(record)
            except RegistryError as error:
                if not error.temporary or self._abandoned.wait(_RETRY_S):
                    raise
                self._say("registry", "records wait: %s; training goes on without it", error)
                self._producer.poll(0)

    def _on_delivery(self, error: KafkaError | None, _message: Any) -> None:
        if error is None:
            self._published += 1
        else:
            self._failed += 1
            self._say("delivery", "records were not delivered: %s", error)

    def _on_error(self, error: KafkaError) -> None:
        self._say("broker", "Kafka cannot be reached; training goes on without it: %s", error)

    def _say(self, what: str, message: str, *values: object) -> None:
        if what not in self._said:
            self._said.add(what)
            log.warning(message, *values)
