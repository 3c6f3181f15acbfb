"""The input events of one partition: queued until they are fed, then held until they are acknowledged."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tamiyo.streams.messages import is_end
from tamiyo.streams.runtime import metrics
from tamiyo.streams.runtime.end_of_stream import EndTracker
from tamiyo.streams.runtime.input_log import InputLog
from tamiyo.streams.runtime.poison import PoisonTracker
from tamiyo.streams.settings import WorkerSettings
from tamiyo.streams.stages.base import Incoming, Stage

GATHER_TURNS = 3  # of the event loop without a new record, after which nothing more has arrived
GAPS_VERIFIED = 3  # per topic and task: more than that are a transactional producer's markers, not lost messages

Undecoded = tuple[Incoming, bytes | None]
"""A record without its decoded form, and the bytes to decode; None for a message without a value."""


@dataclass(slots=True)
class _Held:
    event: Any
    received: float
    """`time.perf_counter()` when the event arrived."""


class InputBuffer:
    """Queues events, hands them out in batches, and holds each until it is acknowledged."""

    def __init__(self, stage: type[Stage], partition: int, worker: WorkerSettings, input_log: InputLog) -> None:
        self.positions: dict[str, int] = {}
        """Next offset of each input topic; empty until `start`."""
        self.ends = EndTracker(topic.name for topic in stage.inputs)
        """Which inputs have ended, in a replay."""
        self._stage = stage.name
        self._partition = partition
        self._max_batch = worker.max_batch
        self._replay = worker.replay
        self._input_log = input_log
        self._poison = PoisonTracker()
        self._queue: deque[tuple[str, Any, float]] = deque()
        self._held: dict[str, dict[int, _Held]] = {topic.name: {} for topic in stage.inputs}
        """By topic and offset, in the order of arrival."""
        self._gaps = dict.fromkeys(self._held, 0)
        self._room = asyncio.Event()
        self._stopped = False
        self._closed = False

    def start(self, positions: Mapping[str, int], poison: PoisonTracker) -> None:
        """Set where each input begins, and which records have to be fed alone."""
        self.positions = dict(positions)
        self._poison = poison

    def stop(self) -> None:
        """Drop what is queued, and take no more."""
        self._stopped = True
        self._queue.clear()
        self._room.set()

    def close(self) -> None:
        """Drop everything, acknowledged or not."""
        self.stop()
        self._closed = True
        for held in self._held.values():
            held.clear()

    @property
    def queued(self) -> int:
        """Return how many events wait to be fed."""
        return len(self._queue)

    @property
    def open_records(self) -> int:
        """Return how many events are neither acknowledged nor dropped."""
        return sum(len(held) for held in self._held.values()) + len(self._queue)

    async def put(self, topic: str, event: Any) -> None:
        """Queue one event of the catalogue's `topic`; waits while the queue is full."""
        while len(self._queue) >= 2 * self._max_batch and not self._stopped:
            self._room.clear()
            await self._room.wait()
        if not self._stopped:
            self._queue.append((topic, event, time.perf_counter()))

    async def gather(self) -> None:
        """Wait a few turns of the event loop while more events arrive, so that a batch is worth its call."""
        # Faust hands on one event a turn. Turns cost nothing while more has arrived, and little otherwise.
        size = 0
        while size < len(self._queue) < self._max_batch:
            size = len(self._queue)
            for _ in range(GATHER_TURNS):
                await asyncio.sleep(0)

    async def next_batch(self) -> list[Undecoded]:
        """Take the next events off the queue; return the records to feed, in order.

        Left out are records that were fed before (the consumer seeks back within a generation) and end markers.

        Raises:
            BrokerError: the consumer skipped records that nobody has acknowledged.
        """
        entries = [self._queue.popleft() for _ in range(self._batch_size())]
        self._room.set()
        batch: list[Undecoded] = []
        for topic, event, received in entries:
            message = event.message
            expected = self.positions[topic]
            if message.offset < expected:
                continue
            if message.offset > expected and self._gaps[topic] < GAPS_VERIFIED:
                self._gaps[topic] += 1
                await self._input_log.verify_gap(topic, expected, message.offset)
            self.positions[topic] = message.offset + 1
            self._held[topic][message.offset] = _Held(event, received)
            if self._replay and is_end(event.value, message.headers):
                self.ends.record(topic, message.offset)
                continue
            metrics.RECEIVED.labels(self._stage, topic).inc()
            value = event.value
            time_ms = int((message.timestamp or 0) * 1000)
            batch.append(
                (Incoming(topic, self._partition, message.offset, time_ms, None, value or b"", event.key), value)
            )
            # An event is held for minutes if its run falls idle: only its offset is needed from here on.
            event.value = message.value = None
        return batch

    def _batch_size(self) -> int:
        """Return how many events to take: a suspected record is fed alone."""
        size = min(len(self._queue), self._max_batch)
        if self._poison:
            for count, (topic, event, _) in enumerate(islice(self._queue, size)):
                if self._poison.isolate(topic, event.message.offset):
                    return max(1, count)
        return size

    def received(self, topic: str, offset: int) -> float | None:
        """Return when an event arrived (`time.perf_counter()`), None when it is not held any more."""
        held = self._held[topic].get(offset)
        return held.received if held is not None else None

    def acknowledge(self, bounds: Mapping[str, int]) -> bool:
        """Acknowledge, in order, every held event below its topic's bound; return False once closed."""
        if self._closed:
            return False
        for topic, bound in bounds.items():
            held = self._held[topic]
            while held:
                offset = next(iter(held))
                if offset >= bound:
                    break
                held.pop(offset).event.ack()
        return True
