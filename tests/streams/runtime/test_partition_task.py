"""Feeding, publishing and acknowledging, without Kafka."""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.identity import identity
from tamiyo.schemas.kafka import TopicNames
from tamiyo.schemas.telemetry import CacheHitRates
from tamiyo.streams.runtime.encoding import Headers
from tamiyo.streams.runtime.output_log import Told
from tamiyo.streams.runtime.partition_task import PartitionTask, RestoredState
from tamiyo.streams.settings import WorkerSettings
from tests.support.pairs import FACTORS, LETTERS, NUMBERS, SUMS, PairSettings, PairStage, number


@dataclass
class Sent:
    topic: str
    value: bytes | None
    partition: int
    headers: dict[str, str]
    delivered: "asyncio.Future[None]"


@dataclass
class FakeKafka:
    """Holds deliveries back until they are let go."""

    worker: WorkerSettings = field(default_factory=lambda: WorkerSettings(max_batch=100))
    names: TopicNames = field(default_factory=lambda: TopicNames(prefix="p."))
    sent: list[Sent] = field(default_factory=list)
    failed: list[BaseException] = field(default_factory=list)
    gaps: list[tuple[str, int, int, int]] = field(default_factory=list)
    held_back: bool = False
    ours: bool = True

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, partition: int, headers: Headers
    ) -> Awaitable[Any]:
        delivered = asyncio.get_running_loop().create_future()
        texts = {name: each.decode() for name, each in headers}
        self.sent.append(Sent(topic, value, partition, texts, delivered))
        if not self.held_back:
            delivered.set_result(None)
        return delivered

    async def may_publish(self, tenure: PartitionTask) -> bool:
        return self.ours and not tenure.closed

    async def verify_gap(self, topic: str, partition: int, expected: int, found: int) -> None:
        self.gaps.append((topic, partition, expected, found))

    def waiting(self, partition: int, positions: Mapping[str, int]) -> int:
        return 1_000 - sum(positions.values())

    def fail(self, error: BaseException, *, at: Mapping[str, Any]) -> None:
        self.failed.append(error)


class TaskHarness:
    """A tenure of the pair stage on partition 1, with what happened to its events."""

    def __init__(self, kafka: FakeKafka, *, first: int = 0, said: set[tuple[str, str]] | None = None) -> None:
        self.kafka = kafka
        self.acknowledged: list[int] = []
        self.tenure = PartitionTask("pairs", (NUMBERS, LETTERS), 1, kafka)
        stage = PairStage(1, PairSettings(), {FACTORS.name: SimpleNamespace(get=lambda key: None)})  # type: ignore[dict-item]
        self.tenure.begin(stage, RestoredState({NUMBERS.name: first, LETTERS.name: 0}, said or set()))

    async def take(self, offset: int, record: CacheHitRates | bytes) -> Any:
        value = encode(record) if isinstance(record, CacheHitRates) else record
        event = SimpleNamespace(
            message=SimpleNamespace(offset=offset, timestamp=1.5, value=value),
            value=value,
            key=b"run",
            ack=lambda: self.acknowledged.append(offset),
        )
        await self.tenure.take(NUMBERS.name, event)
        return event

    async def settle(self) -> None:
        for _ in range(60):
            await asyncio.sleep(0)


def test_positions_do_not_fall_back_behind_what_was_said_before_a_restart() -> None:
    async def scene() -> None:
        kafka = FakeKafka()
        desk = TaskHarness(kafka)
        # The worker before this one had read on to 40, and its commit stayed at 0.
        desk.tenure._memory.reached = {NUMBERS.name: 40}
        await desk.take(0, number("a", 0, 1))
        await desk.take(1, number("a", 1, 2))
        await desk.settle()
        (sent,) = kafka.sent
        told = Told(0, 0, sent.value, sent.headers)
        assert told.positions == {NUMBERS.name: 40, LETTERS.name: 0}
        # A third worker, which finds 2 committed, must look further back than to this.
        assert not told.below({NUMBERS.name: 2, LETTERS.name: 0})

    asyncio.run(scene())


def test_an_input_is_acknowledged_once_what_it_closed_is_delivered() -> None:
    async def scene() -> None:
        kafka = FakeKafka(held_back=True)
        desk = TaskHarness(kafka)
        first = await desk.take(0, number("a", 0, 1))
        await desk.take(1, number("b", 0, 10))
        await desk.take(2, number("a", 1, 2))
        await desk.settle()
        (sent,) = kafka.sent
        assert (sent.topic, sent.partition) == ("p.test.sums", 1)
        assert decode(sent.value, CacheHitRates).hits == 3
        assert sent.headers["tamiyo-source"] == "test.numbers:1:2"
        assert sent.headers["tamiyo-positions"] == "test.numbers=3,test.letters=0"
        inside = [identity("number", "a", step)[:16] for step in (0, 1)]
        assert Told(0, 0, sent.value, sent.headers).member_ids == tuple(inside)
        assert desk.acknowledged == []
        assert first.value is first.message.value is None  # what is held for minutes does not hold its bytes
        sent.delivered.set_result(None)
        await desk.settle()
        assert desk.acknowledged == [0]  # b's number is open, and a's second stands behind it
        await desk.take(3, number("b", 1, 20))
        await desk.settle()
        kafka.sent[1].delivered.set_result(None)
        await desk.settle()
        assert desk.acknowledged == [0, 1, 2, 3]
        assert desk.tenure.open_records == 0
        desk.tenure.close()

    asyncio.run(scene())


def test_deliveries_are_awaited_in_order_while_feeding_goes_on() -> None:
    async def scene() -> None:
        kafka = FakeKafka(held_back=True)
        desk = TaskHarness(kafka)
        for offset in range(4):
            await desk.take(offset, number("a", offset, 1))
            await desk.settle()
        assert len(kafka.sent) == 2  # the second pair did not wait for the first one's delivery
        kafka.sent[1].delivered.set_result(None)
        await desk.settle()
        assert desk.acknowledged == []
        kafka.sent[0].delivered.set_result(None)
        await desk.settle()
        assert desk.acknowledged == [0, 1, 2, 3]
        desk.tenure.close()

    asyncio.run(scene())


def test_what_was_said_is_not_said_again_and_still_acknowledged() -> None:
    async def scene() -> None:
        kafka = FakeKafka()
        first = TaskHarness(kafka)
        await first.take(0, number("a", 0, 1))
        await first.take(1, number("a", 1, 2))
        await first.take(2, b"rubbish")
        await first.settle()
        first.tenure.close()
        said = {
            (SUMS.name, kafka.sent[1].headers["tamiyo-id"]),
            (NUMBERS.dead_letters, "test.numbers:2"),
        }
        again = FakeKafka()
        second = TaskHarness(again, said=said)
        await second.take(0, number("a", 0, 1))
        await second.take(1, number("a", 1, 2))
        await second.take(2, b"rubbish")
        await second.settle()
        assert again.sent == []
        assert second.acknowledged == [0, 1, 2]
        second.tenure.close()

    asyncio.run(scene())


def test_a_record_is_fed_once_and_a_gap_is_looked_into() -> None:
    async def scene() -> None:
        kafka = FakeKafka()
        desk = TaskHarness(kafka, first=5)
        await desk.take(4, number("a", 0, 100))  # below where the tenure began
        await desk.take(5, number("a", 1, 1))
        await desk.take(5, number("a", 1, 1))  # sought back within the generation
        await desk.take(7, number("a", 2, 2))
        await desk.settle()
        (sent,) = kafka.sent
        assert decode(sent.value, CacheHitRates).hits == 3
        assert kafka.gaps == [("test.numbers", 1, 6, 7)]
        assert desk.acknowledged == [5, 7]
        desk.tenure.close()

    asyncio.run(scene())


def test_unusable_messages_are_set_aside_as_they_came() -> None:
    async def scene() -> None:
        kafka = FakeKafka()
        desk = TaskHarness(kafka)
        await desk.take(0, b"rubbish")
        await desk.take(1, number("a", 0, 666))
        await desk.settle()
        dead, late = kafka.sent
        assert (dead.topic, dead.value) == ("p.test.numbers.dlq", b"rubbish")
        assert dead.headers["tamiyo-source"] == "test.numbers:1:0"
        assert dead.headers["tamiyo-reason"].startswith("DecodeError")
        assert (late.topic, late.headers["tamiyo-reason"]) == ("p.test.numbers.late", "the number of the beast")
        assert desk.acknowledged == [0, 1]
        desk.tenure.close()

    asyncio.run(scene())


@pytest.mark.parametrize(("replay", "known"), [(False, 999), (True, 0)])
def test_a_stage_that_asks_is_told_what_waits_behind_its_batch_but_not_in_a_replay(replay: bool, known: int) -> None:
    async def scene() -> None:
        desk = TaskHarness(FakeKafka(worker=WorkerSettings(max_batch=100, replay=replay)))
        stage: Any = desk.tenure.stage
        stage.backlog = 0
        await desk.take(0, number("a", 0, 1))
        await desk.settle()
        assert stage.backlog == known
        desk.tenure.close()

    asyncio.run(scene())


def test_a_bug_acknowledges_nothing() -> None:
    async def scene() -> None:
        kafka = FakeKafka()
        desk = TaskHarness(kafka)
        await desk.take(0, number("a", 0, 999))
        await desk.settle()
        (error,) = kafka.failed
        assert isinstance(error, ZeroDivisionError)
        assert (desk.acknowledged, kafka.sent) == ([], [])

    asyncio.run(scene())


@pytest.mark.parametrize("how", ["lost", "closed"])
def test_a_lost_partition_is_neither_published_to_nor_acknowledged(how: str) -> None:
    async def scene() -> None:
        kafka = FakeKafka(held_back=True, ours=how == "closed")
        desk = TaskHarness(kafka)
        await desk.take(0, number("a", 0, 1))
        await desk.take(1, number("a", 1, 2))
        await desk.settle()
        assert len(kafka.sent) == (1 if how == "closed" else 0)
        desk.tenure.close()
        await desk.settle()
        for each in kafka.sent:
            if not each.delivered.cancelled():
                each.delivered.set_result(None)
        await desk.settle()
        assert desk.acknowledged == []
        await desk.take(2, number("a", 2, 1))
        assert desk.tenure.open_records == 0

    asyncio.run(scene())


def test_draining_waits_for_deliveries_and_feeds_nothing_more() -> None:
    async def scene() -> None:
        kafka = FakeKafka(held_back=True)
        desk = TaskHarness(kafka)
        await desk.take(0, number("a", 0, 1))
        await desk.take(1, number("a", 1, 2))
        await desk.settle()
        draining = asyncio.create_task(desk.tenure.drain())
        await desk.take(2, number("a", 2, 1))
        await desk.settle()
        assert not draining.done()
        kafka.sent[0].delivered.set_result(None)
        await asyncio.wait_for(draining, 5)
        assert desk.acknowledged == [0, 1]
        assert desk.tenure.positions[NUMBERS.name] == 2
        desk.tenure.close()

    asyncio.run(scene())


def test_a_full_inbox_makes_the_stream_wait() -> None:
    async def scene() -> None:
        kafka = FakeKafka(worker=WorkerSettings(max_batch=2))
        tenure = PartitionTask("pairs", (NUMBERS, LETTERS), 1, kafka)
        events = [SimpleNamespace(message=SimpleNamespace(offset=each)) for each in range(5)]
        for event in events[:4]:
            await tenure.take(NUMBERS.name, event)
        waiting = asyncio.create_task(tenure.take(NUMBERS.name, events[4]))
        await asyncio.sleep(0)
        assert not waiting.done()
        tenure.close()
        await asyncio.wait_for(waiting, 5)
        assert tenure.open_records == 0

    asyncio.run(scene())
