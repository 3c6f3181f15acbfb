"""Read decisions, kernels and control commands from Kafka in a background thread."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from tamiyo.host._client.outage import Outage
from tamiyo.host._client.transport import InboundRecord
from tamiyo.schemas.adaptation import ALL_RUNS, AdaptationDecision, CompiledKernel, ControlCommand
from tamiyo.schemas.client.compacted import NewestByKey, copy_of, key_text
from tamiyo.schemas.client.connection import explain
from tamiyo.schemas.client.stalls import Stalls
from tamiyo.schemas.client.tracing import Traces
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import BrokerError, RegistryError, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import CONTROL, DECISIONS, KERNELS, Topic

__all__ = ["KafkaReceiver"]

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_CHECK_S = 30.0  # a partition with the same unread record at two checks in a row has stalled
_LEADERLESS = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
_ELECTION_S = 0.1  # a topic that was just created has no leaders yet
_TOPICS: tuple[Topic, ...] = (DECISIONS, KERNELS, CONTROL)


class KafkaReceiver:
    """A confluent-kafka consumer without a group: reads all partitions and keeps the records of one run.

    If the broker is reachable within `connect_timeout_s`, decisions and kernels are read from the end of their topics
    at that moment, so `attach` creates the receiver before it publishes the topology that any decision about the run
    needs. Otherwise the thread keeps connecting and then reads from the beginning, so that nothing is missed. Control
    is always read from the beginning, because a command stays in force until it is replaced.

    Every 30 s the thread checks for stalled partitions and assigns them again, and reads partitions that were added to
    the topics, from their beginnings. A control command is received if it is the newest of its key on all partitions; a
    tombstone, as a command that allows everything.
    """

    def __init__(
        self,
        run_id: str,
        kafka: KafkaSettings,
        topics: TopicNames,
        *,
        connect_timeout_s: float,
        on_kernel: Callable[[CompiledKernel], None] | None = None,
        traces: Traces | None = None,
    ) -> None:
        """Connect, waiting at most `connect_timeout_s` seconds, and start the thread.

        Args:
            run_id: Run whose records are kept.
            kafka: How to reach the brokers.
            topics: Full names of the topics.
            connect_timeout_s: Longest wait for the broker, seconds; 0: do not wait.
            on_kernel: Called with each kernel record in the background thread, before `receive` returns it.
            traces: Learn the traces of what arrives; None where there are none.
        """
        self._run_id = run_id
        self._kafka = kafka
        self._keys = {run_id.encode(), ALL_RUNS.encode()}
        self._topics = topics
        self._by_name = {topics.full(topic.name): topic for topic in _TOPICS}
        self._on_kernel = on_kernel
        self._orders: NewestByKey[str, ControlCommand] = NewestByKey()
        self._traces = traces
        self._arrived: deque[InboundRecord] = deque()
        self._stopping = threading.Event()
        self._connected = False
        self._explained = False
        self._warned: set[str] = set()
        self._outage = Outage(log)
        self._check_at = time.monotonic() + _CHECK_S
        self._consumer = Consumer(
            kafka.librdkafka(
                **{
                    "group.id": f"tamiyo-host-{run_id}",  # required by librdkafka; nothing is ever committed to it
                    "client.id": "tamiyo-host",
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "auto.offset.reset": "earliest",
                    "fetch.wait.max.ms": 50,  # how long a broker may hold back a new record
                    "error_cb": self._on_error,
                    "log_level": 0,  # errors reach the callback above; librdkafka itself would write to stderr
                }
            )
        )
        self._stalls = Stalls(self._consumer, ())
        self._connect(time.monotonic() + connect_timeout_s)
        self._thread = threading.Thread(target=self._run, name="tamiyo-receiver", daemon=True)
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether the broker was reached at least once."""
        return self._connected

    def receive(self) -> Sequence[InboundRecord]:
        """Return what arrived since the last call, in order of arrival; returns at once."""
        if not self._arrived:
            return ()
        arrived: list[InboundRecord] = []
        while self._arrived:
            arrived.append(self._arrived.popleft())
        return arrived

    def close(self) -> None:
        """Stop reading."""
        self._stopping.set()
        self._thread.join(timeout=2.0)

    def _connect(self, deadline: float) -> None:
        """Start at the current ends of the topics if the broker is reachable before `deadline`."""
        while (left := deadline - time.monotonic()) > 0:
            try:
                self._begin(self._positions(left, from_end=True))
                return
            except BrokerError:
                return  # the thread retries and logs why it failed
            except KafkaException as error:
                if error.args[0].code() not in _LEADERLESS:
                    return
                time.sleep(_ELECTION_S)

    def _begin(self, positions: list[TopicPartition]) -> None:
        self._consumer.assign(positions)
        self._stalls = Stalls(self._consumer, positions)
        self._connected = True

    def _check(self) -> None:
        """Assign stalled partitions again, and those that were added to the topics."""
        self._check_at = time.monotonic() + _CHECK_S
        stalled = self._stalls.check(_RETRY_S)
        if stalled:
            self._warn_once("stall", f"{stalled[0].topic} stalled at offset {stalled[0].offset}: assigned again")
            self._consumer.incremental_unassign(stalled)
            self._consumer.incremental_assign(stalled)
        known = {(place.topic, place.partition) for place in self._consumer.assignment()}
        try:
            # Nothing on a new partition is older than this run, or than the order that it replaces.
            added = self._positions(_RETRY_S, from_end=False, known=known)
        except (BrokerError, KafkaException):
            return  # an outage, or leaders that are still to be elected: the next check finds them
        if added:
            self._stalls.add(added)
            self._consumer.incremental_assign(added)

    def _positions(
        self, timeout_s: float, *, from_end: bool, known: Collection[tuple[str, int]] = ()
    ) -> list[TopicPartition]:
        """Return the topics' partitions but those `known`, each with the offset to read from."""
        deadline = time.monotonic() + timeout_s
        if not known:  # where partitions are assigned, it would take a record
            self._consumer.poll(0)  # librdkafka asks for a token of OAUTHBEARER in a poll only
        positions = []
        for name, topic in self._by_name.items():
            metadata = self._consumer.list_topics(name, timeout=max(0.1, deadline - time.monotonic())).topics[name]
            if metadata.error is not None or not metadata.partitions:
                raise BrokerError(f"topic {name} cannot be read: {metadata.error or 'it has no partitions'}")
            for number in metadata.partitions:
                if (name, number) in known:
                    continue
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
                if time.monotonic() >= self._check_at:
                    self._check()
            except Exception as error:  # no record and no broker may end training
                if not self._connected and not self._explained:
                    self._explained = True
                    self._outage.report(str(explain(self._kafka, _RETRY_S) or error))
                elif self._connected:
                    self._warn_once("reading", f"reading from Kafka failed, retrying: {type(error).__name__}: {error}")
                self._stopping.wait(_RETRY_S)
        self._consumer.close()

    def _take(self, message: Message) -> None:
        problem = message.error()
        if problem is not None and problem.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            self._warn_once(
                "permission",
                f"no permission to read {message.topic()}: {problem.str()}; "
                "`tamiyo topics acls --role host` lists the permissions that a host needs",
            )
        if problem is None:
            self._outage.end()
        topic = self._by_name.get(message.topic() or "")
        # The key identifies other runs' records without decoding them.
        if problem is not None or topic is None or message.key() not in self._keys:
            return
        value = message.value()
        if value is None:
            if topic is CONTROL:
                self._take_order(message, None)
            return  # a tombstone of a compacted topic
        try:
            record = self._decode(value if isinstance(value, bytes) else str(value).encode(), topic)
        except SchemaError as error:
            self._warn_once("record", f"a record on {topic.name} was skipped: {error}")
            return
        if isinstance(record, ControlCommand):
            self._take_order(message, record)
            return
        if not isinstance(record, AdaptationDecision | CompiledKernel) or record.run_id != self._run_id:
            return
        if self._traces is not None:
            self._traces.received(record, message.headers())
        if isinstance(record, CompiledKernel) and self._on_kernel is not None:
            self._on_kernel(record)
        self._arrived.append(record)

    def _take_order(self, message: Message, command: ControlCommand | None) -> None:
        """Receive the order in force under the message's key, if the message changes which one that is."""
        key = key_text(message.key())
        if command is not None and command.run_id != key:
            return
        before = self._orders.copies(key)
        if not self._orders.take(key, copy_of(message, command)):
            return
        order = self._orders.get(key)
        if order is None and before and before[-1].value is not None:
            # Everything is allowed again; the host obeys the newer of two orders, or the later of the same time.
            order = ControlCommand(run_id=key, time_ms=before[-1].value.time_ms)
        if order is not None:
            self._arrived.append(order)

    def _decode(self, value: bytes, topic: Topic) -> Record:
        """Decode a record, retrying while the schema registry is unreachable: no decision may be lost."""
        while True:
            try:
                return decode(value, topic.record)
            except RegistryError as error:
                self._warn_once(
                    "registry", f"decisions wait for the schema registry: {error}; training continues without them"
                )
                if self._stopping.wait(_RETRY_S):
                    raise

    def _on_error(self, error: KafkaError) -> None:
        if self._connected:  # until then the thread finds out more
            self._outage.on_error(error)

    def _warn_once(self, subject: str, message: str) -> None:
        if subject not in self._warned:
            self._warned.add(subject)
            log.warning("%s", message)
