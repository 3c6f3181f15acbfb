"""End markers of a replay: the stage is flushed, the markers are passed on, and only then are they acknowledged."""

import asyncio
from collections.abc import Sequence
from typing import Any

from tamiyo.streams.headers import END_HEADER, END_MARKER
from tamiyo.streams.messages import is_end
from tamiyo.streams.runtime.end_of_stream import EndTracker
from tamiyo.streams.settings import WorkerSettings
from tamiyo.streams.stages.base import Incoming, Output
from tests.streams.runtime.harness import FakeKafka, TaskHarness, pair_stage, settle
from tests.support.pairs import LETTERS, NUMBERS, SUMS, PairStage, number


class FlushingStage(PairStage):
    """The pair stage, which at the end publishes the last number."""

    held: list[Incoming]

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Any]:
        self.held = [*getattr(self, "held", []), *batch]
        return super().feed(batch)

    def flush(self) -> Sequence[Output]:
        last = self.held[-1]
        return [Output(SUMS, last.record, "flushed", last)]


def flushing(kafka: FakeKafka) -> TaskHarness:
    return TaskHarness(kafka, stage=pair_stage(FlushingStage))


def replaying() -> FakeKafka:
    return FakeKafka(worker=WorkerSettings(max_batch=100, replay=True))


def test_a_stage_flushes_and_passes_the_end_marker_on_once_all_its_inputs_have_ended() -> None:
    async def scene() -> None:
        kafka = replaying()
        harness = flushing(kafka)
        await harness.take(0, number("a", 0, 1))
        await harness.take(1, None)
        await settle()
        assert kafka.sent == []  # the letters may go on
        assert harness.acknowledged[NUMBERS.name] == []
        kafka.keep_back = True
        await harness.take(0, None, LETTERS.name)
        await settle()
        flushed, marker = kafka.sent
        assert flushed.headers["tamiyo-id"] == "flushed"
        assert (marker.topic, marker.value) == (SUMS.name, None)
        assert END_HEADER in marker.headers
        # A worker that is killed now reads the end markers again.
        assert harness.acknowledged == {NUMBERS.name: [], LETTERS.name: []}
        flushed.delivered.set_result(None)
        await settle()
        assert harness.acknowledged == {NUMBERS.name: [], LETTERS.name: []}
        marker.delivered.set_result(None)
        await settle()
        assert harness.acknowledged[LETTERS.name] == [0]
        assert not kafka.failed
        harness.task.close()

    asyncio.run(scene())


def test_an_end_marker_that_waits_for_another_blocks_nothing_before_it() -> None:
    async def scene() -> None:
        kafka = replaying()
        harness = flushing(kafka)
        await harness.take(0, number("a", 0, 1))
        await harness.take(1, number("a", 1, 2))
        await harness.take(2, None)
        await settle()
        assert harness.acknowledged[NUMBERS.name] == [0, 1]
        harness.task.close()

    asyncio.run(scene())


def test_without_a_replay_an_end_marker_is_dead_lettered() -> None:
    async def scene() -> None:
        kafka = FakeKafka()
        harness = flushing(kafka)
        await harness.take(0, None)
        await settle()
        await harness.take(0, None, LETTERS.name)
        await settle()
        assert [each.topic for each in kafka.sent] == ["test.numbers.dlq", "test.letters.dlq"]
        harness.task.close()

    asyncio.run(scene())


def test_an_end_marker_has_no_value_and_a_header() -> None:
    assert is_end(None, END_MARKER)
    assert not is_end(b"", END_MARKER)
    assert not is_end(None, [("tamiyo-id", b"1")])
    assert not is_end(None, None)


def test_the_end_is_due_once() -> None:
    ends = EndTracker(["a", "b"])
    ends.record("a", 7)
    assert not ends.due()
    assert ends.bound("a", 9) == 7
    assert ends.bound("b", 9) == 9
    ends.record("b", 3)
    assert ends.due()
    assert not ends.due()
    assert ends.bound("a", 9) == 9
