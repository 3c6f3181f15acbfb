"""A partition task without Kafka: its publisher, its input log and its failures are kept in memory."""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from tamiyo.schemas.codec import encode
from tamiyo.schemas.telemetry import CacheHitRates
from tamiyo.streams.headers import END_MARKER
from tamiyo.streams.runtime.encoding import Headers
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
    ours: bool = True
    """Whether the partition is still held."""
    sent: list[Sent] = field(default_factory=list)
    failed: list[BaseException] = field(default_factory=list)
    gaps: list[tuple[str, int, int]] = field(default_factory=list)
    closed: bool = False

    def close(self) -> None:
        self.closed = True

    async def may_publish(self) -> bool:
        return self.ours and not self.closed

    async def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> Awaitable[Any]:
        delivered = asyncio.get_running_loop().create_future()
        self.sent.append(Sent(topic, value, {name: each.decode() for name, each in headers}, delivered))
        if not self.keep_back:
            delivered.set_result(None)
        return delivered

    async def verify_gap(self, topic: str, expected: int, found: int) -> None:
        self.gaps.append((topic, expected, found))

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
        self.acknowledged: dict[str, list[int]] = {NUMBERS.name: [], LETTERS.name: []}
        self.stage = stage or pair_stage()
        fake: Any = kafka
        self.task = PartitionTask(type(self.stage), PARTITION, kafka.worker, fake, fake, kafka.fail)
        self.task.begin(self.stage, restored or start_of_log(), PoisonTracker() if poison is None else poison)

    async def take(self, offset: int, record: CacheHitRates | bytes | None, topic: str = NUMBERS.name) -> Any:
        """Hand an event to the task; None is an end marker."""
        value = encode(record) if isinstance(record, CacheHitRates) else record
        event = SimpleNamespace(
            message=SimpleNamespace(
                offset=offset, timestamp=1.5, value=value, headers=END_MARKER if value is None else []
            ),
            value=value,
            key=b"run",
            ack=lambda: self.acknowledged[topic].append(offset),
        )
        await self.task.take(topic, event)
        return event
