"""The input records of one partition: queued until they are fed, then counted until they are acknowledged."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import structlog

from tamiyo.schemas.errors import BrokerError
from tamiyo.streams.messages import is_end
from tamiyo.streams.runtime import metrics
from tamiyo.streams.runtime.end_of_stream import EndTracker
from tamiyo.streams.runtime.input_log import InputLog
from tamiyo.streams.runtime.poison import PoisonTracker
from tamiyo.streams.settings import WorkerSettings
from tamiyo.streams.stages.base import Stage

log = structlog.get_logger(__name__)

GATHER_TURNS = 3  # of the event loop without a new record, after which nothing more has arrived
GAPS_VERIFIED = 3  # per topic and task: more than that are a transactional producer's markers, not lost messages

SEEK_AGAIN_S = 1.0  # after a seek, for what was on its way before it
MOST_SEEKS = 20

Undecoded = tuple[str, Any]
"""The catalogue's topic of a record, and the record as aiokafka gives it."""
Acknowledge = Callable[[str, int], None]
"""Lets the next commit move an input topic to an offset, the next one to read."""


@dataclass(slots=True)
class _Sought:
    offset: int
    times: int = 0
    at: float = float("-inf")
    """When the consumer was sought back last (`time.monotonic()`)."""


class InputBuffer:
    """Queues records, hands them out in batches, and knows which are not acknowledged yet."""

    def __init__(
        self, stage: type[Stage], worker: WorkerSettings, input_log: InputLog, acknowledge: Acknowledge
    ) -> None:
        self.positions: dict[str, int] = {}
        """Next offset of each input topic; empty until `start`."""
        self.ends = EndTracker(topic.name for topic in stage.inputs)
        """Which inputs have ended, in a replay."""
        self._stage = stage.name
        self._max_batch = worker.max_batch
        self._replay = worker.replay
        self._input_log = input_log
        self._commit = acknowledge
        self._poison = PoisonTracker()
        self._queue: deque[tuple[str, Any, float]] = deque()
        self._held: dict[str, dict[int, float]] = {topic.name: {} for topic in stage.inputs}
        """By topic and offset, when a record arrived that is handed out and not acknowledged, in that order."""
        self._gaps = dict.fromkeys(self._held, 0)
        self._sought: dict[str, _Sought] = {}
        """By topic, what the consumer has skipped and was sought back to."""
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
        """Return how many records wait to be fed."""
        return len(self._queue)

    @property
    def open_records(self) -> int:
        """Return how many records are neither acknowledged nor dropped."""
        return sum(len(held) for held in self._held.values()) + len(self._queue)

    async def put(self, topic: str, records: Sequence[Any]) -> None:
        """Queue a few records of the catalogue's `topic`, in order; waits while the queue is full."""
        received = time.perf_counter()
        while len(self._queue) >= 2 * self._max_batch and not self._stopped:
            self._room.clear()
            await self._room.wait()
        if not self._stopped:
            self._queue.extend((topic, record, received) for record in records)

    async def gather(self) -> None:
        """Wait a few turns of the event loop while more records arrive, so that a batch is worth its call."""
        # Faust hands on one fetch a turn. Turns cost nothing while more has arrived, and little otherwise.
        size = 0
        while size < len(self._queue) < self._max_batch:
            size = len(self._queue)
            for _ in range(GATHER_TURNS):
                await asyncio.sleep(0)

    async def next_batch(self) -> list[Undecoded]:
        """Take the next records off the queue; return those to feed, in order.

        Left out are records that were fed before (the consumer seeks back within a generation), end markers, and what
        follows records that the consumer skipped: it is sought back to those.

        Raises:
            BrokerError: the consumer skips records that nobody has acknowledged, wherever it is sought to.
        """
        entries = [self._queue.popleft() for _ in range(self._batch_size())]
        self._room.set()
        batch: list[Undecoded] = []
        received: Counter[str] = Counter()
        for topic, record, arrived in entries:
            offset, expected = record.offset, self.positions[topic]
            if offset < expected:
                continue
            if offset > expected and await self._skipped(topic, expected, offset):
                continue
            self._sought.pop(topic, None)
            self.positions[topic] = offset + 1
            self._held[topic][offset] = arrived
            if self._replay and is_end(record.value, record.headers):
                self.ends.record(topic, offset)
                continue
            received[topic] += 1
            batch.append((topic, record))
        for topic, count in received.items():
            metrics.RECEIVED.labels(self._stage, topic).inc(count)
        return batch

    async def _skipped(self, topic: str, expected: int, offset: int) -> bool:
        """Return whether the consumer skipped records before `offset`, or has not come back to them yet."""
        sought = self._sought.get(topic)
        if sought is None:
            if self._gaps[topic] >= GAPS_VERIFIED:
                return False
            first = await self._input_log.first_skipped(topic, expected, offset)
            if first is None:
                self._gaps[topic] += 1
                return False
            sought = self._sought[topic] = _Sought(first)
        if offset <= sought.offset:
            return False
        # What was on its way before the consumer sought back may still arrive, and be taken for its new position.
        if time.monotonic() - sought.at >= SEEK_AGAIN_S:
            if sought.times == MOST_SEEKS:
                raise BrokerError(
                    f"the consumer skips from offset {expected} to {offset} of {topic}, though it was sought back to "
                    f"{sought.offset}, which exists, {MOST_SEEKS} times"
                )
            sought.times += 1
            sought.at = time.monotonic()
            log.warning("the consumer skipped records, seeking back", stage=self._stage, topic=topic,
                        to=sought.offset, arrived=offset, times=sought.times)  # fmt: skip
            await self._input_log.seek(topic, sought.offset)
        return True

    def _batch_size(self) -> int:
        """Return how many records to take: a suspected one is fed alone."""
        size = min(len(self._queue), self._max_batch)
        if self._poison:
            for count, (topic, record, _) in enumerate(islice(self._queue, size)):
                if self._poison.isolate(topic, record.offset):
                    return max(1, count)
        return size

    def received(self, topic: str, offset: int) -> float | None:
        """Return when a record arrived (`time.perf_counter()`), None when it is acknowledged."""
        return self._held[topic].get(offset)

    def acknowledge(self, bounds: Mapping[str, int]) -> bool:
        """Acknowledge every record below its topic's bound; return False once closed."""
        if self._closed:
            return False
        for topic, bound in bounds.items():
            held = self._held[topic]
            done = []
            for offset in held:
                if offset >= bound:
                    break
                done.append(offset)
            if not done:
                continue
            for offset in done:
                del held[offset]
            self._commit(topic, done[-1] + 1)
        return True
