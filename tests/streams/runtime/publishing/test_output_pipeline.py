"""The commit invariant: nothing is acknowledged before everything earlier is delivered."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo.streams.headers import END_HEADER
from tamiyo.streams.runtime import metrics
from tamiyo.streams.runtime.end_of_stream import EndOfStream
from tamiyo.streams.runtime.input_buffer import InputBuffer
from tamiyo.streams.runtime.output_pipeline import MAX_IN_FLIGHT, OutputPipeline
from tamiyo.streams.runtime.poison import PoisonTracker
from tamiyo.streams.runtime.restore import RestoredState
from tamiyo.streams.settings import WorkerSettings
from tamiyo.streams.stages.base import Incoming, Output, Reject
from tests.streams.runtime.harness import PARTITION, Acknowledged, FakeKafka, record_at, settle
from tests.support.pairs import LETTERS, NUMBERS, SUMS, PairStage, number


def output(name: str, source: Incoming | None = None) -> Output:
    return Output(SUMS, number("run", 0, 1), name, source)


def incoming(offset: int) -> Incoming:
    return Incoming(NUMBERS.name, PARTITION, offset, 0, None, b"raw", b"key")


class PipelineHarness:
    """A pipeline of a partition of which `read` numbers were read, with the offsets acknowledged."""

    def __init__(self, kafka: FakeKafka, restored: RestoredState | None = None, *, replay: bool = False) -> None:
        self.kafka = kafka
        fake: Any = kafka
        self._acknowledge = Acknowledged(NUMBERS.name, LETTERS.name)
        self.acknowledged = self._acknowledge.offsets[NUMBERS.name]
        self.inputs = InputBuffer(PairStage, WorkerSettings(replay=replay), fake, self._acknowledge)
        self.inputs.start({NUMBERS.name: 0, LETTERS.name: 0}, PoisonTracker())
        self.pipeline = OutputPipeline("pairs", self.inputs, fake, restored or RestoredState({}))
        self.delivering = asyncio.create_task(self.pipeline.deliver())

    async def read(self, offset: int) -> None:
        self._acknowledge.took(NUMBERS.name, offset)
        await self.inputs.put(NUMBERS.name, [record_at(offset, b"v")])
        await self.inputs.next_batch()

    def deliver(self, *places: int) -> None:
        for place in places:
            self.kafka.sent[place].delivered.set_result(None)

    def end(self) -> None:
        self.delivering.cancel()


@settings(deadline=None, max_examples=200)
@given(
    # Of each call: how many outputs it returns, and how many offsets of those read the stage still needs.
    calls=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=12),
    rng=st.randoms(use_true_random=False),
)
def test_nothing_is_acknowledged_before_everything_earlier_is_delivered(calls: list[tuple[int, int]], rng: Any) -> None:
    async def scene() -> None:
        harness = PipelineHarness(FakeKafka(keep_back=True))
        bounds: list[int] = []
        owner: list[int] = []
        undelivered: set[int] = set()

        async def check() -> None:
            await settle()
            first_open = min((owner[place] for place in undelivered), default=len(bounds))
            allowed = max(bounds[:first_open], default=0)
            assert harness.acknowledged == list(range(len(harness.acknowledged)))
            # Not beyond what is delivered; and, since nothing else is missing, as far as that.
            assert len(harness.acknowledged) == allowed

        for index, (outputs, needed) in enumerate(calls):
            await harness.read(index)
            # What a stage has once let go it never needs again.
            bounds.append(max([*bounds, index + 1 - needed, 0]))
            named = [output(f"{index}-{each}") for each in range(outputs)]
            await harness.pipeline.publish(named, {NUMBERS.name: bounds[-1]})
            undelivered |= set(range(len(owner), len(owner) + outputs))
            owner += [index] * outputs
            await check()
            while undelivered and rng.random() < 0.4:
                place = rng.choice(sorted(undelivered))
                undelivered.discard(place)
                harness.deliver(place)
                await check()
        harness.deliver(*undelivered)
        undelivered.clear()
        await check()
        assert harness.pipeline.in_flight == 0
        assert [each.headers["tamiyo-id"] for each in harness.kafka.sent] == [
            f"{index}-{each}" for index, (outputs, _) in enumerate(calls) for each in range(outputs)
        ]
        harness.end()

    asyncio.run(scene())


def test_an_offset_beyond_the_position_is_not_acknowledged() -> None:
    async def scene() -> None:
        harness = PipelineHarness(FakeKafka())
        await harness.read(0)
        await harness.pipeline.publish([], {NUMBERS.name: 7})
        assert harness.acknowledged == [0]
        await harness.read(1)
        await harness.pipeline.publish([], {NUMBERS.name: 7})  # the same, and yet one more is read
        assert harness.acknowledged == [0, 1]
        await harness.read(2)
        await harness.pipeline.publish([], {})  # nothing needed
        assert harness.acknowledged == [0, 1, 2]
        harness.end()

    asyncio.run(scene())


def test_an_end_marker_is_acknowledged_once_it_is_passed_on() -> None:
    async def scene() -> None:
        harness = PipelineHarness(FakeKafka(keep_back=True), replay=True)
        await harness.read(0)
        harness.inputs.ends.record(NUMBERS.name, 0)
        await harness.pipeline.publish([], {})
        assert harness.acknowledged == []
        harness.inputs.ends.record(LETTERS.name, 0)
        assert harness.inputs.ends.due()
        for _ in range(2):  # a marker is published as often as it is due: nothing has to be remembered of it
            await harness.pipeline.publish([EndOfStream(SUMS)], {})
        assert [END_HEADER in each.headers for each in harness.kafka.sent] == [True, True]
        await settle()
        assert harness.acknowledged == []
        harness.deliver(0)
        await settle()
        assert harness.acknowledged == [0]
        harness.end()

    asyncio.run(scene())


def test_earlier_outputs_and_rejects_are_not_published_again() -> None:
    async def scene() -> None:
        published = {
            (SUMS.name, "old"),
            (NUMBERS.dead_letters, "test.numbers:1"),
            (NUMBERS.late, "test.numbers:2"),
        }
        harness = PipelineHarness(FakeKafka(), RestoredState({}, published))
        again = [output("old"), Reject(incoming(1), "bad"), Reject(incoming(2), "late", late=True)]
        new = [output("new"), Reject(incoming(1), "late", late=True), Reject(incoming(3), "bad", poison=True)]
        await harness.pipeline.publish([*again, *new], {})
        assert [each.topic for each in harness.kafka.sent] == [SUMS.name, NUMBERS.late, NUMBERS.dead_letters]
        assert [each.headers.get("tamiyo-poison") for each in harness.kafka.sent] == [None, None, "1"]
        assert harness.kafka.sent[1].value == b"raw"
        harness.end()

    asyncio.run(scene())


def test_headers_have_the_highest_position_of_this_worker_or_an_earlier_one() -> None:
    async def scene() -> None:
        harness = PipelineHarness(FakeKafka(), RestoredState({}, reached={NUMBERS.name: 2}))
        for offset in range(4):
            await harness.read(offset)
            await harness.pipeline.publish([output(str(offset))], {})
        positions = [each.headers["tamiyo-positions"] for each in harness.kafka.sent]
        assert positions == [f"test.numbers={each},test.letters=0" for each in (2, 2, 3, 4)]
        harness.end()

    asyncio.run(scene())


@pytest.mark.parametrize("how", ["lost", "closed"])
def test_a_lost_partition_gets_no_output_and_no_acknowledgement(how: str) -> None:
    async def scene() -> None:
        kafka = FakeKafka(ours=how != "lost")
        harness = PipelineHarness(kafka)
        await harness.read(0)
        if how == "closed":
            harness.inputs.close()
            kafka.close()
        await harness.pipeline.publish([output("one")], {})
        await harness.pipeline.publish([], {})
        await settle()
        assert (kafka.sent, harness.acknowledged, harness.pipeline.in_flight) == ([], [], 0)
        harness.end()

    asyncio.run(scene())


def test_publishing_waits_while_too_many_calls_are_in_flight() -> None:
    async def scene() -> None:
        harness = PipelineHarness(FakeKafka(keep_back=True))
        for place in range(MAX_IN_FLIGHT):
            await asyncio.wait_for(harness.pipeline.publish([output(str(place))], {}), 5)
        publishing = asyncio.create_task(harness.pipeline.publish([output("last")], {}))
        await settle()
        assert not publishing.done()
        harness.deliver(0)
        await asyncio.wait_for(publishing, 5)
        flushing = asyncio.create_task(harness.pipeline.flush())
        harness.deliver(*range(1, MAX_IN_FLIGHT))
        await settle()
        assert not flushing.done()
        harness.deliver(MAX_IN_FLIGHT)
        await asyncio.wait_for(flushing, 5)
        harness.end()

    asyncio.run(scene())


def test_progress_changes_with_every_delivery() -> None:
    async def scene() -> None:
        harness = PipelineHarness(FakeKafka(keep_back=True))
        await harness.pipeline.publish([output("a"), output("b")], {})
        seen = [harness.pipeline.progress]
        for place in (0, 1):
            harness.deliver(place)
            await settle()
            seen.append(harness.pipeline.progress)
        assert len(set(seen)) == 3
        harness.end()

    asyncio.run(scene())


def test_a_failed_delivery_ends_the_delivering() -> None:
    async def scene() -> None:
        harness = PipelineHarness(FakeKafka(keep_back=True))
        await harness.read(0)
        await harness.pipeline.publish([output("a")], {})
        harness.kafka.sent[0].delivered.set_exception(TimeoutError())
        with pytest.raises(TimeoutError):
            await harness.delivering
        assert harness.acknowledged == []

    asyncio.run(scene())


def test_records_delivered_together_are_counted_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[list[str]] = []
    monkeypatch.setattr(
        metrics, "observe_deliveries", lambda stage, sent: counted.append([each.identity for each, _ in sent])
    )

    async def scene() -> None:
        harness = PipelineHarness(FakeKafka(together=2))
        await harness.pipeline.publish([output(name) for name in "abcde"], {})
        await settle()
        harness.end()

    asyncio.run(scene())
    assert counted == [["a", "b"], ["c", "d"], ["e"]]
