"""One stage's hold of one partition, from its assignment to the next rebalance.

A rebalance takes every partition away, and the group reads again from the committed offsets even where it gets the
same partitions back (aiokafka's eager protocol). So a tenure ends with it: its stage, its held events and what it had
not published are dropped, and the next tenure begins from the committed offsets and the tail of the stage's outputs.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

import structlog

from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import BrokerError, SchemaError
from tamiyo.schemas.kafka import TopicNames
from tamiyo.schemas.topics import DECISIONS, SIGNALS, Topic
from tamiyo.streams.messages import is_end
from tamiyo.streams.runtime import metrics
from tamiyo.streams.runtime.encoding import Headers, key_of, message_of
from tamiyo.streams.runtime.end_of_stream import EndOfStream, EndTracker
from tamiyo.streams.runtime.poison import PoisonTracker
from tamiyo.streams.settings import WorkerSettings
from tamiyo.streams.stages.base import Incoming, Output, Reject, Stage

log = structlog.get_logger(__name__)

MAX_IN_FLIGHT = 100  # batches published and not yet delivered: enough to hide a round trip, few enough to bound memory
GATHER_TURNS = 3  # of the event loop without a new record, after which nothing more has arrived
GAPS_VERIFIED = 3  # a topic, a tenure: more than that are a transactional producer's markers, not lost messages


class Connection(Protocol):
    """What a tenure needs of the process around it."""

    worker: WorkerSettings
    names: TopicNames

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, partition: int, headers: Headers
    ) -> Awaitable[Any]:
        """Hand a message to the producer; the result is done once it is delivered."""

    async def may_publish(self, tenure: "PartitionTask") -> bool:
        """Wait until it is certain whether the partition is still held; return whether it is."""

    async def verify_gap(self, topic: str, partition: int, expected: int, found: int) -> None:
        """End the process if messages between two offsets exist, since then they were skipped."""

    def waiting(self, partition: int, positions: Mapping[str, int]) -> int:
        """Return how many records the log was last known to hold at and after `positions`."""

    def fail(self, error: BaseException, *, at: Mapping[str, Any]) -> None:
        """End the process at once, with nothing acknowledged."""


@dataclass(slots=True)
class _Held:
    event: Any
    received: float


@dataclass(slots=True)
class _Sent:
    """What one call of the stage led to, and what may be acknowledged once all of it is delivered."""

    deliveries: list[tuple[Awaitable[Any], Output | Reject | EndOfStream, float | None]]
    bounds: dict[str, int]


@dataclass(slots=True)
class RestoredState:
    """What the tail of the outputs told: where to go on, and what not to say again."""

    positions: dict[str, int]
    """Next offset of each input topic."""
    said: set[tuple[str, str]] = field(default_factory=set)
    """(topic, identity) of outputs; (topic, "source topic:offset") of rejects."""
    reached: dict[str, int] = field(default_factory=dict)
    """The highest position of each input that the tail tells of: a worker before this one may have come further."""
    poison: set[tuple[str, int]] = field(default_factory=set)
    """(topic, offset) of inputs that went to the dead letters because the stage raised on them."""

    def highest(self) -> dict[str, int]:
        """Return how far each input has ever been read."""
        return {topic: max(offset, self.reached.get(topic, 0)) for topic, offset in self.positions.items()}


class PartitionTask:
    """Feeds one stage with one partition number of all its inputs, publishes what it says, acknowledges in order."""

    def __init__(self, stage: str, inputs: Sequence[Topic], partition: int, connection: Connection) -> None:
        self.stage_name = stage
        self.partition = partition
        self.closed = False
        self.stage: Stage | None = None
        self._inputs = {topic.name: topic for topic in inputs}
        self._connection = connection
        self._inbox: deque[tuple[str, Any, float]] = deque()
        self._held: dict[str, dict[int, _Held]] = {topic: {} for topic in self._inputs}
        self._memory = RestoredState({})
        self._suspects = PoisonTracker()
        self._endings = EndTracker(self._inputs)
        self._gaps: dict[str, int] = dict.fromkeys(self._inputs, 0)
        self._sent: deque[_Sent] = deque()
        self._acknowledged: dict[str, int] = {}
        self._delivered = 0
        self._feeding = False
        self._tick_due = False
        self._draining = False
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._delivery = asyncio.Event()
        self._idle = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # What the shell calls

    def begin(self, stage: Stage, memory: RestoredState, suspects: PoisonTracker | None = None) -> None:
        """Start to work: `stage` has recalled what it said."""
        if self.closed:
            return
        self.stage = stage
        self._memory = memory
        if suspects is not None:
            self._suspects = suspects
            suspects.forget_below(memory.positions)
        self._tasks = [
            asyncio.create_task(self._guarded(self._work()), name=f"{self.stage_name}-{self.partition}"),
            asyncio.create_task(self._guarded(self._deliver()), name=f"{self.stage_name}-{self.partition}-delivery"),
        ]
        self._wake.set()

    async def take(self, topic: str, event: Any) -> None:
        """Queue one event of the catalogue's `topic`; waits while the inbox is full."""
        while len(self._inbox) >= 2 * self._connection.worker.max_batch and not (self.closed or self._draining):
            self._room.clear()
            await self._room.wait()
        if self.closed or self._draining:
            return
        self._inbox.append((topic, event, time.perf_counter()))
        self._wake.set()

    def tick(self) -> None:
        """Let the stage look at the clock soon."""
        self._tick_due = True
        self._wake.set()

    async def drain(self) -> None:
        """Feed nothing more; return once everything that the stage has said is delivered and acknowledged."""
        self._draining = True
        self._inbox.clear()
        self._room.set()
        self._wake.set()
        if self._tasks and not self.closed:
            await self._idle.wait()

    def close(self) -> None:
        """Drop everything: the partition is somebody else's now."""
        self.closed = True
        for task in self._tasks:
            task.cancel()
        self._inbox.clear()
        for held in self._held.values():
            held.clear()
        for event in (self._room, self._wake, self._delivery, self._idle):
            event.set()

    @property
    def positions(self) -> Mapping[str, int]:
        """Return the next offset of each input topic."""
        return self._memory.positions

    @property
    def progress(self) -> Hashable:
        """Return something that changes whenever a record is read, delivered or acknowledged."""
        return self.stage is None, self._delivered, *self._memory.positions.values(), *self._acknowledged.values()

    @property
    def busy(self) -> bool:
        """Whether records wait to be fed, are being fed, or wait to be delivered."""
        return bool(self._inbox or self._feeding or self._sent)

    @property
    def open_records(self) -> int:
        """Return how many records are neither acknowledged nor dropped."""
        return sum(len(held) for held in self._held.values()) + len(self._inbox)

    # Feeding

    async def _guarded(self, work: Awaitable[None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            at = {topic: offset - 1 for topic, offset in self._memory.positions.items()}
            self._connection.fail(error, at={"stage": self.stage_name, "partition": self.partition, "read": at})

    async def _work(self) -> None:
        while not self.closed:
            await self._wake.wait()
            self._wake.clear()
            while (self._inbox or self._tick_due) and not (self.closed or self._draining):
                if self._inbox:
                    await self._gather()
                    self._feeding = True
                    await self._feed()
                    self._feeding = False
                if self._tick_due:
                    self._tick_due = False
                    await self._look_at_the_clock()
                # Other partitions and stages share this loop.
                await asyncio.sleep(0)
            if self._draining and not self._sent:
                self._idle.set()

    async def _gather(self) -> None:
        # Faust hands on one event a turn of the loop. Turns are free where more has arrived, and few where not.
        size = 0
        while size < len(self._inbox) < self._connection.worker.max_batch:
            size = len(self._inbox)
            for _ in range(GATHER_TURNS):
                await asyncio.sleep(0)

    def _size(self) -> int:
        """Return how many records to feed at once: a suspect goes alone."""
        size = min(len(self._inbox), self._connection.worker.max_batch)
        if self._suspects:
            for count, (topic, event, _) in enumerate(islice(self._inbox, size)):
                if self._suspects.isolate(topic, event.message.offset):
                    return max(1, count)
        return size

    def _poison(self, topic: str, offset: int) -> str | None:
        """Return why a record must not be fed; None where it may be."""
        if (topic, offset) in self._memory.poison:
            return "poison: it is with the dead letters"
        return self._suspects.is_poison(topic, offset)

    async def _feed(self) -> None:
        assert self.stage is not None
        batch: list[Incoming] = []
        rejects: list[Output | Reject] = []
        for _ in range(self._size()):
            topic, event, received = self._inbox.popleft()
            message = event.message
            expected = self._memory.positions[topic]
            if message.offset < expected:
                continue  # read again after a seek within the generation: the stage has it already
            if message.offset > expected and self._gaps[topic] < GAPS_VERIFIED:
                self._gaps[topic] += 1
                await self._connection.verify_gap(topic, self.partition, expected, message.offset)
            self._memory.positions[topic] = message.offset + 1
            self._held[topic][message.offset] = _Held(event, received)
            if self._connection.worker.replay and is_end(event.value, message.headers):
                self._endings.note(topic, message.offset)
                continue
            metrics.RECEIVED.labels(self.stage_name, topic).inc()
            value = event.value
            incoming = Incoming(
                topic,
                self.partition,
                message.offset,
                int((message.timestamp or 0) * 1000),
                None,
                value or b"",
                event.key,
            )
            # Held until it is acknowledged, for minutes where a run fell silent: by then only its place matters.
            event.value = message.value = None
            if poison := self._poison(topic, message.offset):
                rejects.append(Reject(incoming, poison, poison=True))
                continue
            try:
                record = decode(value, self._inputs[topic].record)
            except SchemaError as error:
                rejects.append(Reject(incoming, f"{type(error).__name__}: {error}"))
            else:
                batch.append(replace(incoming, record=record))
        self._room.set()
        said: list[Output | Reject] = rejects
        if batch:
            self._tell_backlog()
            started = time.perf_counter()
            try:
                said = [*rejects, *await self._call(self.stage.feed, batch)]
            except (BrokerError, OSError, MemoryError):
                raise  # not for what the records say
            except Exception as error:
                self._suspects.record_failure(batch, error)
                raise
            metrics.FEED_SECONDS.labels(self.stage_name).inc(time.perf_counter() - started)
            metrics.BATCH_RECORDS.labels(self.stage_name).observe(len(batch))
        await self._publish(said)
        if self._endings.due():
            await self._end()

    async def _end(self) -> None:
        """Say what the stage still holds, and that nothing follows."""
        assert self.stage is not None
        log.info("all inputs have ended", stage=self.stage_name, partition=self.partition)
        await self._publish([*self.stage.flush(), *map(EndOfStream, self.stage.outputs)])

    async def _look_at_the_clock(self) -> None:
        assert self.stage is not None
        self._tell_backlog()
        said = await self._call(self.stage.tick, time.time_ns() // 1_000_000)
        await self._publish(said)

    def _tell_backlog(self) -> None:
        """Tell a stage that asks for it how much waits on the log.

        Not in a replay: it is never overloaded, only early, and shedding would make it say something else.
        """
        assert self.stage is not None
        if not self._connection.worker.replay:
            self.stage.backlog = self._connection.waiting(self.partition, self._memory.positions)

    async def _call(self, function: Any, argument: Any) -> Sequence[Output | Reject]:
        assert self.stage is not None
        offload = self.stage.offload
        said: Sequence[Output | Reject] = await asyncio.to_thread(function, argument) if offload else function(argument)
        return said

    # Publishing

    def _bounds(self) -> dict[str, int]:
        assert self.stage is not None
        still_needed = self.stage.open_offsets()
        return {
            topic: self._endings.bound(topic, min(still_needed.get(topic, position), position))
            for topic, position in self._memory.positions.items()
        }

    async def _publish(self, said: Iterable[Output | Reject | EndOfStream]) -> None:
        bounds = self._bounds()
        new = [each for each in said if self._is_new(each)]
        if not new and (bounds == self._acknowledged or self.closed):
            return
        if not await self._connection.may_publish(self):
            return
        deliveries: list[tuple[Awaitable[Any], Output | Reject | EndOfStream, float | None]] = []
        # Not this worker's own positions: those of a restart begin below what the one before it had said already.
        positions = ",".join(f"{topic}={offset}" for topic, offset in self._memory.highest().items()).encode()
        for each in new:
            source = None if isinstance(each, EndOfStream) else each.source
            held = self._held[source.topic].get(source.offset) if source is not None else None
            name, key, value, headers = message_of(each, self.stage_name, positions)
            if isinstance(each, Reject):
                self._tell_reject(each, name)
            full = self._connection.names.full(name)
            delivery = await self._connection.send(full, key, value, self.partition, headers)
            deliveries.append((delivery, each, held.received if held else None))
        if not deliveries and not self._sent:
            self._acknowledge(bounds)
            return
        self._sent.append(_Sent(deliveries, bounds))
        self._delivery.set()
        while len(self._sent) > MAX_IN_FLIGHT and not self.closed:
            self._room.clear()
            await self._room.wait()

    def _is_new(self, each: Output | Reject | EndOfStream) -> bool:
        if isinstance(each, EndOfStream):
            return True  # a repeated mark says the same
        key = key_of(each)
        if key in self._memory.said:
            metrics.REPEATED.labels(self.stage_name, key[0]).inc()
            return False
        return True

    def _tell_reject(self, each: Reject, to: str) -> None:
        kind = "late" if each.late else "poison" if each.poison else "unusable"
        metrics.REJECTED.labels(self.stage_name, each.source.topic, kind).inc()
        log.warning("a message is set aside", stage=self.stage_name, to=to, partition=self.partition,
                    offset=each.source.offset, reason=each.reason)  # fmt: skip

    async def _deliver(self) -> None:
        while not self.closed:
            await self._delivery.wait()
            self._delivery.clear()
            while self._sent and not self.closed:
                sent = self._sent[0]
                for delivery, each, received in sent.deliveries:
                    await delivery
                    self._delivered += 1
                    self._observe(each, received)
                self._acknowledge(sent.bounds)
                self._sent.popleft()
                self._room.set()
            if self._draining:
                self._wake.set()

    def _observe(self, each: Output | Reject | EndOfStream, received: float | None) -> None:
        if isinstance(each, Output):
            if received is not None:
                metrics.STAGE_LATENCY.labels(self.stage_name).observe(time.perf_counter() - received)
            metrics.PUBLISHED.labels(self.stage_name, each.topic.name).inc()
            record: Any = each.record
            if each.topic is SIGNALS:
                metrics.SHED.inc(record.shed)
            elif each.topic is DECISIONS:
                metrics.END_TO_END_LATENCY.observe(max(0.0, time.time() - record.time_ms / 1000))
                metrics.POLICY_VERSION.set(record.policy_version)

    def _acknowledge(self, bounds: dict[str, int]) -> None:
        """Acknowledge, in order, every held event below its topic's bound."""
        if self.closed:
            return
        for topic, bound in bounds.items():
            held = self._held[topic]
            while held:
                offset = next(iter(held))
                if offset >= bound:
                    break
                held.pop(offset).event.ack()
        self._acknowledged = bounds
