"""A partition task without Kafka: its publisher, its input log and its failures are kept in memory."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from tamiyo.schemas.codec import encode
from tamiyo.schemas.telemetry import CacheHitRates
from tamiyo.streams.headers import END_MARKER, KeyValueHeaders
from tamiyo.streams.runtime.output_publisher import size_of
from tamiyo.streams.runtime.partition_task import PartitionTask
from tamiyo.streams.runtime.poison import PoisonTracker
from tamiyo.streams.runtime.restore import RestoredState
from tamiyo.streams.settings import WorkerSettings
from tests.support.pairs import FACTORS, LETTERS, NUMBERS, PairSettings, PairStage

PARTITION = 1


@dataclass
class Sent:
    """One message handed to the producer."""

    topic: str
    """Catalogue name."""
    value: bytes | None
    headers: dict[str, str]
    delivered: "asyncio.Future[None]"


@dataclass
class FakeKafka:
    """An `OutputPublisher` and an `InputLog` at once, which keeps deliveries back until they are released."""

    worker: WorkerSettings = field(default_factory=lambda: WorkerSettings(max_batch=100))
    keep_back: bool = False
    together: int = 1
    """Records that one delivery has."""
    ours: bool = True
    """Whether the partition is still held."""
    sent: list[Sent] = field(default_factory=list)
    failed: list[BaseException] = field(default_factory=list)
    gaps: list[tuple[str, int, int]] = field(default_factory=list)
    skipped: dict[int, int] = field(default_factory=dict)
    """By the offset expected, the first one skipped."""
    sought: list[int] = field(default_factory=list)
    closed: bool = False
    partition: int = PARTITION
    largest: int = 10_000
    """Bytes that a message may have."""

    def close(self) -> None:
        self.closed = True

    async def may_publish(self) -> bool:
        return self.ours and not self.closed

    async def send(self, topic: str, records: Sequence[KeyValueHeaders]) -> list[tuple[Awaitable[Any], int]]:
        deliveries: list[tuple[Awaitable[Any], int]] = []
        for start in range(0, len(records), self.together):
            some = records[start : start + self.together]
            delivered = asyncio.get_running_loop().create_future()
            for _, value, headers in some:
                self.sent.append(Sent(topic, value, {name: each.decode() for name, each in headers}, delivered))
            if not self.keep_back:
                delivered.set_result(None)
            deliveries.append((delivered, len(some)))
        return deliveries

    def excess(self, message: KeyValueHeaders) -> int:
        size = size_of(message)
        return size if size > self.largest else 0

    async def first_skipped(self, topic: str, expected: int, found: int) -> int | None:
        self.gaps.append((topic, expected, found))
        return self.skipped.get(expected)

    async def seek(self, topic: str, offset: int) -> None:
        self.sought.append(offset)

    def backlog(self, positions: Mapping[str, int]) -> int:
        return 1_000 - sum(positions.values())

    def fail(self, error: BaseException, at: Mapping[str, Any]) -> None:
        self.failed.append(error)


def start_of_log() -> RestoredState:
    """Return the state of a partition of which nothing has been read."""
    return RestoredState({NUMBERS.name: 0, LETTERS.name: 0})


def pair_stage(kind: type[PairStage] = PairStage) -> PairStage:
    """Return a stage without factors."""
    return kind(PARTITION, PairSettings(), {FACTORS.name: SimpleNamespace(get=lambda key: None)})  # type: ignore[dict-item]


async def settle() -> None:
    """Let every task of the loop run until it waits."""
    for _ in range(60):
        await asyncio.sleep(0)


class Acknowledged:
    """The offsets acknowledged of each input, of those that were taken."""

    def __init__(self, *topics: str) -> None:
        self.offsets: dict[str, list[int]] = {topic: [] for topic in topics}
        self._taken: dict[str, list[int]] = {topic: [] for topic in topics}

    def took(self, topic: str, offset: int) -> None:
        """Record an offset that was handed to a task or buffer."""
        self._taken[topic].append(offset)

    def __call__(self, topic: str, offset: int) -> None:
        """Acknowledge everything below `offset`."""
        known = self.offsets[topic]
        known += sorted({each for each in self._taken[topic] if each < offset and each > max(known, default=-1)})


def record_at(offset: int, value: bytes | None, key: bytes = b"run") -> Any:
    """Return a record as aiokafka gives it; without a value, an end marker."""
    headers = END_MARKER if value is None else []
    return SimpleNamespace(offset=offset, timestamp=1500, value=value, headers=headers, key=key)


class TaskHarness:
    """A task of a pair stage, with the offsets acknowledged of each input."""

    def __init__(
        self,
        kafka: FakeKafka,
        *,
        stage: PairStage | None = None,
        restored: RestoredState | None = None,
        poison: PoisonTracker | None = None,
    ) -> None:
        self.kafka = kafka
        self._acknowledge = Acknowledged(NUMBERS.name, LETTERS.name)
        self.acknowledged = self._acknowledge.offsets
        self.stage = stage or pair_stage()
        fake: Any = kafka
        self.task = PartitionTask(type(self.stage), PARTITION, kafka.worker, fake, fake, self._acknowledge, kafka.fail)
        restored = restored or start_of_log()
        self._begins = dict(restored.positions)
        self.task.begin(self.stage, restored, PoisonTracker() if poison is None else poison)

    async def take(self, offset: int, record: CacheHitRates | bytes | None, topic: str = NUMBERS.name) -> Any:
        """Hand a record to the task; None is an end marker."""
        value = encode(record) if isinstance(record, CacheHitRates) else record
        taken = record_at(offset, value)
        if offset >= self._begins[topic]:
            self._acknowledge.took(topic, offset)
        await self.task.take(topic, [taken])
        return taken
