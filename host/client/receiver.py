"""Decisions, kernels and control orders from Kafka, read in a background thread."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from tamiyo.schemas.adaptation import ALL_RUNS, AdaptationDecision, CompiledKernel, ControlCommand
from tamiyo.schemas.codec import decode
from tamiyo.schemas.connection import explain
from tamiyo.schemas.errors import BrokerError, RegistryError, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.stalls import Stalls
from tamiyo.schemas.topics import CONTROL, DECISIONS, KERNELS, Topic

log = logging.getLogger(__name__)

Arrival = AdaptationDecision | CompiledKernel | ControlCommand

_RETRY_S = 1.0
_LOOK_S = 30.0  # what has waited unread from one look to the next is stuck
_LEADERLESS = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
_ELECTION_S = 0.1  # a topic that was just created has no leaders yet
_TOPICS: tuple[Topic, ...] = (DECISIONS, KERNELS, CONTROL)


class Receiver(Protocol):
    """Where an attached run's orders come from."""

    @property
    def connected(self) -> bool:
        """Whether the broker has ever answered."""

    def receive(self) -> Sequence[Arrival]:
        """What has come since the last call, in order of arrival; returns at once."""

    def close(self) -> None:
        """Stop reading."""


class KafkaReceiver:
    """A confluent-kafka consumer without a group: it reads all partitions and keeps what is for this run.

    Where the broker answers within `connect_timeout_s`, decisions and kernels are read from the end as it was then, so
    `attach` makes this before it publishes the topology that any decision about the run needs. Where it does not, the
    thread keeps trying and then reads from the beginning: only this run's records are kept, whatever was missed.
    Control is always read from the beginning, since orders stand until they are replaced.

    The thread looks now and then whether a partition has stalled, and takes it up again.
    """

    def __init__(
        self,
        run_id: str,
        kafka: KafkaSettings,
        topics: TopicNames,
        *,
        connect_timeout_s: float,
        on_kernel: Callable[[CompiledKernel], None] | None = None,
    ) -> None:
        """`on_kernel` is called in the background thread, before the kernel is handed on: to fetch it ahead."""
        self._run_id = run_id
        self._kafka = kafka
        self._keys = {run_id.encode(), ALL_RUNS.encode()}
        self._topics = topics
        self._by_name = {topics.full(topic.name): topic for topic in _TOPICS}
        self._on_kernel = on_kernel
        self._arrived: deque[Arrival] = deque()
        self._stopping = threading.Event()
        self._connected = False
        self._said = False
        self._look_at = time.monotonic() + _LOOK_S
        self._consumer = Consumer(
            kafka.librdkafka(
                **{
                    "group.id": f"tamiyo-host-{run_id}",  # librdkafka wants one; nothing is ever committed to it
                    "client.id": "tamiyo-host",
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "auto.offset.reset": "earliest",
                    "fetch.wait.max.ms": 50,  # how long a mock broker holds back a record that has just come
                    "error_cb": self._on_error,
                    "log_level": 0,  # the callback above tells; librdkafka itself would write to stderr
                }
            )
        )
        self._stalls = Stalls(self._consumer, ())
        self._connect(time.monotonic() + connect_timeout_s)
        self._thread = threading.Thread(target=self._run, name="tamiyo-receiver", daemon=True)
        self._thread.start()

    @property
    def connected(self) -> bool:
        return self._connected

    def receive(self) -> Sequence[Arrival]:
        arrived: list[Arrival] = []
        while self._arrived:
            arrived.append(self._arrived.popleft())
        return arrived

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=2.0)

    def _connect(self, deadline: float) -> None:
        """Read from the ends there are now, if the broker tells them in time."""
        while (left := deadline - time.monotonic()) > 0:
            try:
                self._begin(self._positions(left, from_end=True))
                return
            except BrokerError:
                return  # the thread tries again, and says why it failed
            except KafkaException as error:
                if error.args[0].code() not in _LEADERLESS:
                    return
                time.sleep(_ELECTION_S)

    def _begin(self, positions: list[TopicPartition]) -> None:
        self._consumer.assign(positions)
        self._stalls = Stalls(self._consumer, positions)
        self._connected = True

    def _look(self) -> None:
        """Take up again the partitions where what waited at the last look still does."""
        self._look_at = time.monotonic() + _LOOK_S
        stalled = self._stalls.check(_RETRY_S)
        if stalled:
            self._say(f"{stalled[0].topic} was not read on from offset {stalled[0].offset}: it is taken up again")
            self._consumer.incremental_unassign(stalled)
            self._consumer.incremental_assign(stalled)

    def _positions(self, timeout_s: float, *, from_end: bool) -> list[TopicPartition]:
        deadline = time.monotonic() + timeout_s
        positions = []
        for name, topic in self._by_name.items():
            metadata = self._consumer.list_topics(name, timeout=max(0.1, deadline - time.monotonic())).topics[name]
            if metadata.error is not None or not metadata.partitions:
                raise BrokerError(f"topic {name} cannot be read: {metadata.error or 'it has no partitions'}")
            for number in metadata.partitions:
                place = TopicPartition(name, number)
                low, high = self._consumer.get_watermark_offsets(place, timeout=max(0.1, deadline - time.monotonic()))
                place.offset = high if from_end and topic is not CONTROL else low
                positions.append(place)
        return positions

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if not self._connected:
                    self._begin(self._positions(_RETRY_S, from_end=False))
                message = self._consumer.poll(0.2)
                if message is not None:
                    self._take(message)
                if time.monotonic() >= self._look_at:
                    self._look()
            except Exception as error:  # nothing that comes, or fails to, may end training
                if not self._connected and not self._said:
                    why = explain(self._kafka, _RETRY_S) or error
                    self._say(f"Kafka does not answer; training goes on without it: {why}")
                self._say(f"reading from Kafka failed; it is tried again: {type(error).__name__}: {error}")
                self._stopping.wait(_RETRY_S)
        self._consumer.close()

    def _take(self, message: Message) -> None:
        problem = message.error()
        if problem is not None and problem.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            self._say(f"{message.topic()} may not be read: {problem.str()}; `tamiyo topics acls --role host` lists all")
        topic = self._by_name.get(message.topic() or "")
        # Other runs' records are told apart by their key, before anything is decoded.
        if problem is not None or topic is None or message.key() not in self._keys:
            return
        value = message.value()
        if value is None:
            return  # a tombstone: compaction's business
        try:
            record = self._decode(value if isinstance(value, bytes) else str(value).encode(), topic)
        except SchemaError as error:
            self._say(f"a record on {topic.name} was left out: {error}")
            return
        if not isinstance(record, AdaptationDecision | CompiledKernel | ControlCommand):
            return
        if record.run_id not in (self._run_id, ALL_RUNS):
            return
        if isinstance(record, CompiledKernel) and self._on_kernel is not None:
            self._on_kernel(record)
        self._arrived.append(record)

    def _decode(self, value: bytes, topic: Topic) -> Record:
        """Decode a record, waiting for the schema registry where it is needed: the decision is not to be lost."""
        while True:
            try:
                return decode(value, topic.record)
            except RegistryError as error:
                self._say(f"decisions wait: {error}; training goes on without them")
                if self._stopping.wait(_RETRY_S):
                    raise

    def _on_error(self, error: object) -> None:
        self._say(f"Kafka cannot be reached; training goes on without it: {error}")

    def _say(self, message: str) -> None:
        if not self._said:
            self._said = True
            log.warning("%s", message)
