"""The mark that ends a replay: what a stage held is said, the mark goes on, and only then is it acknowledged."""

import asyncio
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from tamiyo.schemas.codec import encode
from tamiyo.schemas.telemetry import CacheHitRates
from tamiyo.streams.headers import END_HEADER, END_MARKER
from tamiyo.streams.messages import is_end
from tamiyo.streams.runtime.end_of_stream import EndTracker
from tamiyo.streams.runtime.partition_task import PartitionTask, RestoredState
from tamiyo.streams.settings import WorkerSettings
from tamiyo.streams.stages.base import Incoming, Output
from tests.streams.runtime.test_partition_task import FakeKafka
from tests.support.pairs import FACTORS, LETTERS, NUMBERS, SUMS, PairSettings, PairStage, number


class FlushingStage(PairStage):
    """The pair stage, which at the end says what has no partner."""

    held: list[Incoming]

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Any]:
        self.held = [*getattr(self, "held", []), *batch]
        return super().feed(batch)

    def flush(self) -> Sequence[Output]:
        last = self.held[-1]
        return [Output(SUMS, last.record, "flushed", last)]


class TaskHarness:
    """A tenure of the flushing stage, and what was acknowledged of each topic."""

    def __init__(self, kafka: FakeKafka, positions: Mapping[str, int] | None = None) -> None:
        self.acknowledged: dict[str, list[int]] = {NUMBERS.name: [], LETTERS.name: []}
        self.tenure = PartitionTask("pairs", (NUMBERS, LETTERS), 1, kafka)
        stage = FlushingStage(1, PairSettings(), {FACTORS.name: SimpleNamespace(get=lambda key: None)})  # type: ignore[dict-item]
        self.tenure.begin(stage, RestoredState(dict(positions or {NUMBERS.name: 0, LETTERS.name: 0}), set()))

    async def take(self, topic: str, offset: int, record: CacheHitRates | None) -> None:
        event = SimpleNamespace(
            message=SimpleNamespace(offset=offset, timestamp=1.5, headers=[] if record else END_MARKER),
            value=encode(record) if record else None,
            key=b"run",
            ack=lambda: self.acknowledged[topic].append(offset),
        )
        await self.tenure.take(topic, event)
        for _ in range(60):
            await asyncio.sleep(0)


def replaying(**fields: Any) -> FakeKafka:
    return FakeKafka(worker=WorkerSettings(max_batch=100, replay=True), **fields)


def test_a_stage_flushes_and_passes_the_mark_on_once_all_its_inputs_have_ended() -> None:
    async def scene() -> None:
        kafka = replaying()
        desk = TaskHarness(kafka)
        await desk.take(NUMBERS.name, 0, number("a", 0, 1))
        await desk.take(NUMBERS.name, 1, None)
        assert kafka.sent == []  # the letters may go on
        assert desk.acknowledged[NUMBERS.name] == []
        kafka.held_back = True
        await desk.take(LETTERS.name, 0, None)
        flushed, mark = kafka.sent
        assert flushed.headers["tamiyo-id"] == "flushed"
        assert (mark.topic, mark.value, mark.partition) == ("p.test.sums", None, 1)
        assert END_HEADER in mark.headers
        # A worker that is killed now meets the marks again.
        assert desk.acknowledged == {NUMBERS.name: [], LETTERS.name: []}
        flushed.delivered.set_result(None)
        mark.delivered.set_result(None)
        for _ in range(60):
            await asyncio.sleep(0)
        assert desk.acknowledged[LETTERS.name] == [0]
        assert not kafka.failed
        desk.tenure.close()

    asyncio.run(scene())


def test_a_mark_that_waits_for_another_holds_nothing_before_it_back() -> None:
    async def scene() -> None:
        kafka = replaying()
        desk = TaskHarness(kafka)
        await desk.take(NUMBERS.name, 0, number("a", 0, 1))
        await desk.take(NUMBERS.name, 1, number("a", 1, 2))
        await desk.take(NUMBERS.name, 2, None)
        assert desk.acknowledged[NUMBERS.name] == [0, 1]
        desk.tenure.close()

    asyncio.run(scene())


def test_without_a_replay_a_mark_is_an_unusable_message() -> None:
    async def scene() -> None:
        kafka = FakeKafka()
        desk = TaskHarness(kafka)
        await desk.take(NUMBERS.name, 0, None)
        await desk.take(LETTERS.name, 0, None)
        assert [each.topic for each in kafka.sent] == ["p.test.numbers.dlq", "p.test.letters.dlq"]
        desk.tenure.close()

    asyncio.run(scene())


def test_a_mark_has_no_value_and_says_so_in_its_headers() -> None:
    assert is_end(None, END_MARKER)
    assert not is_end(b"", END_MARKER)
    assert not is_end(None, [("tamiyo-id", b"1")])
    assert not is_end(None, None)


def test_endings_are_due_once() -> None:
    endings = EndTracker(["a", "b"])
    endings.note("a", 7)
    assert not endings.due()
    assert endings.bound("a", 9) == 7
    assert endings.bound("b", 9) == 9
    endings.note("b", 3)
    assert endings.due()
    assert not endings.due()
    assert endings.bound("a", 9) == 9
