"""The input buffer: every offset is handed out once, in order, and held until it is acknowledged."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo.schemas.errors import BrokerError
from tamiyo.streams.runtime import input_buffer
from tamiyo.streams.runtime.input_buffer import GAPS_VERIFIED, MOST_SEEKS, InputBuffer
from tamiyo.streams.runtime.poison import PoisonTracker
from tamiyo.streams.settings import WorkerSettings
from tamiyo.streams.stages.base import Incoming
from tests.streams.runtime.harness import Acknowledged, FakeKafka, record_at, settle
from tests.support.pairs import LETTERS, NUMBERS, PairStage

BUG = ZeroDivisionError("a bug")


class BufferHarness:
    """A buffer whose inputs begin at 0, with the offsets acknowledged."""

    def __init__(self, *, poison: PoisonTracker | None = None, **worker: Any) -> None:
        self.log = FakeKafka()
        log: Any = self.log
        self.acknowledge = Acknowledged(NUMBERS.name, LETTERS.name)
        self.buffer = InputBuffer(PairStage, WorkerSettings(**{"max_batch": 100, **worker}), log, self.acknowledge)
        self.buffer.start({NUMBERS.name: 0, LETTERS.name: 0}, poison or PoisonTracker())

    @property
    def acknowledged(self) -> list[int]:
        return [offset for offsets in self.acknowledge.offsets.values() for offset in offsets]

    async def put(self, *offsets: int, topic: str = NUMBERS.name, value: bytes | None = b"v") -> None:
        for offset in offsets:
            self.acknowledge.took(topic, offset)
            await self.buffer.put(topic, [record_at(offset, value, b"k")])

    async def batch(self) -> list[int]:
        return [record.offset for _, record in await self.buffer.next_batch()]


@settings(deadline=None)
@given(
    offsets=st.lists(st.integers(0, 30), max_size=40),
    splits=st.lists(st.integers(1, 8), min_size=1),
    first=st.integers(0, 5),
)
def test_offsets_are_handed_out_once_and_in_order_whatever_is_read_again(
    offsets: list[int], splits: list[int], first: int
) -> None:
    async def scene() -> None:
        harness = BufferHarness()
        harness.buffer.start({NUMBERS.name: first, LETTERS.name: 0}, PoisonTracker())
        left, found, sizes = list(offsets), [], iter(splits * 40)
        while left:
            size = next(sizes)
            await harness.put(*left[:size])
            del left[:size]
            found += await harness.batch()
        expected: list[int] = []
        for offset in offsets:
            if offset >= first and offset > max(expected, default=-1):
                expected.append(offset)
        assert found == expected
        assert harness.buffer.positions == {NUMBERS.name: expected[-1] + 1 if expected else first, LETTERS.name: 0}
        assert harness.buffer.open_records == len(expected)
        gaps = [
            (NUMBERS.name, before + 1, after)
            for before, after in zip([first - 1, *expected], expected, strict=False)
            if after > before + 1
        ]
        assert harness.log.gaps == gaps[:GAPS_VERIFIED]

    asyncio.run(scene())


def test_gaps_are_verified_for_each_topic() -> None:
    async def scene() -> None:
        harness = BufferHarness()
        for topic in (NUMBERS.name, LETTERS.name):
            await harness.put(*range(1, 20, 2), topic=topic)
        await harness.batch()
        assert [topic for topic, _, _ in harness.log.gaps] == [NUMBERS.name] * 3 + [LETTERS.name] * 3

    asyncio.run(scene())


def test_the_consumer_is_sought_back_to_what_it_skipped_and_nothing_is_lost_or_out_of_order() -> None:
    async def scene() -> None:
        harness = BufferHarness()
        harness.log.skipped = {1: 2}  # offset 1 is a marker
        await harness.put(0, 4, 5)
        assert await harness.batch() == [0]
        assert harness.log.sought == [2]
        await harness.put(6, 7)  # on their way before the seek
        await harness.put(0, topic=LETTERS.name)
        assert await harness.batch() == [0]
        await harness.put(2, 3, 4, 5, 6)
        assert await harness.batch() == [2, 3, 4, 5, 6]
        assert harness.buffer.positions[NUMBERS.name] == 7
        assert harness.log.sought == [2]

    asyncio.run(scene())


def test_records_skipped_again_are_sought_again_until_the_consumer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_buffer, "SEEK_AGAIN_S", 0.0)

    async def scene() -> None:
        harness = BufferHarness()
        harness.log.skipped = {1: 1}
        await harness.put(0, *range(4, 4 + MOST_SEEKS))
        assert await harness.batch() == [0]
        while harness.buffer.queued:
            assert await harness.batch() == []
        assert harness.log.sought == [1] * MOST_SEEKS
        await harness.put(99)
        with pytest.raises(BrokerError, match=r"skips from offset 1 to 99 of test\.numbers"):
            await harness.batch()

    asyncio.run(scene())


def test_a_consumer_that_skips_twice_is_sought_back_twice() -> None:
    async def scene() -> None:
        harness = BufferHarness()
        harness.log.skipped = {1: 1, 3: 3}
        await harness.put(0, 2)
        assert await harness.batch() == [0]
        await harness.put(1, 2, 5)
        assert await harness.batch() == [1, 2]
        await harness.put(3)
        assert await harness.batch() == [3]
        assert harness.log.sought == [1, 3]

    asyncio.run(scene())


def test_a_stop_while_a_gap_is_verified_lets_the_batch_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        harness = BufferHarness()

        async def wait(*_: Any) -> None:
            await settle()

        monkeypatch.setattr(harness.log, "first_skipped", wait)
        await harness.put(1, 2, 3)
        taking = asyncio.create_task(harness.batch())
        await asyncio.sleep(0)
        harness.buffer.stop()
        assert await taking == [1, 2, 3]

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("failed", "batches"),
    [
        ([], [[0, 1, 2, 3], [4, 5]]),
        ([2], [[0, 1], [2], [3, 4, 5]]),
        ([0], [[0], [1, 2, 3, 4], [5]]),
        ([2, 3], [[0, 1], [2], [3], [4, 5]]),
        ([4], [[0, 1, 2, 3], [4], [5]]),
    ],
)
def test_a_suspected_record_is_fed_alone_and_no_batch_is_too_large(failed: list[int], batches: list[list[int]]) -> None:
    async def scene() -> None:
        tracker = PoisonTracker()
        for offset in failed:
            tracker.record_failure([Incoming(NUMBERS.name, 0, offset, 0, None)], BUG)
        harness = BufferHarness(poison=tracker, max_batch=4)
        await harness.put(*range(6))
        found = []
        while harness.buffer.queued:
            found.append(await harness.batch())
        assert found == batches

    asyncio.run(scene())


def test_events_are_acknowledged_in_order_below_the_bound_of_their_topic() -> None:
    async def scene() -> None:
        harness = BufferHarness()
        await harness.put(0, 1, 2)
        await harness.put(10, 11, topic=LETTERS.name)
        await harness.batch()
        assert harness.buffer.received(NUMBERS.name, 1) is not None
        assert harness.buffer.acknowledge({NUMBERS.name: 2, LETTERS.name: 10})
        assert harness.acknowledged == [0, 1]
        assert harness.buffer.received(NUMBERS.name, 1) is None
        assert harness.buffer.acknowledge({NUMBERS.name: 2, LETTERS.name: 12})
        assert harness.acknowledged == [0, 1, 10, 11]
        assert harness.buffer.open_records == 1
        await harness.put(3)
        assert harness.buffer.open_records == 2

    asyncio.run(scene())


def test_a_closed_buffer_acknowledges_nothing_and_takes_nothing() -> None:
    async def scene() -> None:
        harness = BufferHarness()
        await harness.put(0, 1)
        await harness.batch()
        harness.buffer.close()
        assert not harness.buffer.acknowledge({NUMBERS.name: 2})
        await harness.put(2)
        assert (harness.acknowledged, harness.buffer.open_records, harness.buffer.queued) == ([], 0, 0)

    asyncio.run(scene())


def test_a_full_buffer_makes_the_stream_wait_until_a_batch_is_taken() -> None:
    async def scene() -> None:
        harness = BufferHarness(max_batch=2)
        putting = asyncio.create_task(harness.put(*range(5)))
        await settle()
        assert harness.buffer.queued == 4
        assert not putting.done()
        await harness.batch()
        await asyncio.wait_for(putting, 5)
        assert harness.buffer.queued == 3

    asyncio.run(scene())


def test_gathering_waits_for_events_that_arrive_a_turn_at_a_time_and_not_for_more_than_a_batch() -> None:
    async def scene() -> None:
        harness = BufferHarness(max_batch=3)
        await harness.put(0)

        async def arrive() -> None:
            for offset in range(1, 6):
                await asyncio.sleep(0)
                await harness.put(offset)

        arriving = asyncio.create_task(arrive())
        await harness.buffer.gather()
        assert 3 <= harness.buffer.queued < 6
        await arriving

    asyncio.run(scene())


@pytest.mark.parametrize("replay", [True, False])
def test_only_a_replay_has_end_markers_and_they_are_held_but_not_handed_out(replay: bool) -> None:
    async def scene() -> None:
        harness = BufferHarness(replay=replay)
        await harness.put(0)
        await harness.put(1, value=None)
        assert await harness.batch() == ([0] if replay else [0, 1])
        assert harness.buffer.ends.bound(NUMBERS.name, 2) == (1 if replay else 2)
        assert (harness.buffer.open_records, harness.buffer.positions[NUMBERS.name]) == (2, 2)

    asyncio.run(scene())
