"""Feeding, publishing and acknowledging, without Kafka."""

import asyncio
from typing import Any

import pytest

from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.identity import identity
from tamiyo.schemas.telemetry import CacheHitRates
from tamiyo.streams.runtime.output_log import LogMessage
from tamiyo.streams.runtime.partition_task import PartitionTask
from tamiyo.streams.runtime.poison import PoisonTracker
from tamiyo.streams.runtime.restore import RestoredState
from tamiyo.streams.settings import WorkerSettings
from tamiyo.streams.stages.base import Incoming
from tests.streams.runtime.harness import (
    PARTITION,
    Acknowledged,
    FakeKafka,
    Sent,
    TaskHarness,
    record_at,
    settle,
    start_of_log,
)
from tests.support.pairs import LETTERS, NUMBERS, SUMS, PairStage, number


def on_log(sent: Sent) -> LogMessage:
    return LogMessage(sent.topic, 0, sent.value, sent.headers)


def test_positions_in_headers_do_not_fall_below_those_published_before_a_restart() -> None:
    async def scene() -> None:
        kafka = FakeKafka()
        # The worker before this one had read on to 40, and its commit stayed at 0.
        restored = start_of_log()
        restored.reached = {NUMBERS.name: 40}
        harness = TaskHarness(kafka, restored=restored)
        await harness.take(0, number("a", 0, 1))
        await harness.take(1, number("a", 1, 2))
        await settle()
        (sent,) = kafka.sent
        assert on_log(sent).positions == {NUMBERS.name: 40, LETTERS.name: 0}
        # A third worker that finds 2 committed has to read further back than to this.
        assert not on_log(sent).precedes({NUMBERS.name: 2, LETTERS.name: 0})
        harness.task.close()

    asyncio.run(scene())


def test_an_input_is_acknowledged_once_the_output_it_closed_is_delivered() -> None:
    async def scene() -> None:
        kafka = FakeKafka(keep_back=True)
        harness = TaskHarness(kafka)
        acknowledged = harness.acknowledged[NUMBERS.name]
        await harness.take(0, number("a", 0, 1))
        await harness.take(1, number("b", 0, 10))
        await harness.take(2, number("a", 1, 2))
        await settle()
        (sent,) = kafka.sent
        assert sent.topic == SUMS.name
        assert decode(sent.value, CacheHitRates).hits == 3
        assert sent.headers["tamiyo-source"] == "test.numbers:1:2"
        assert sent.headers["tamiyo-positions"] == "test.numbers=3,test.letters=0"
        inside = [identity("number", "a", step)[:16] for step in (0, 1)]
        assert on_log(sent).member_ids == tuple(inside)
        assert acknowledged == []
        sent.delivered.set_result(None)
        await settle()
        assert acknowledged == [0]  # b's number is open, and a's second comes after it
        await harness.take(3, number("b", 1, 20))
        await settle()
        kafka.sent[1].delivered.set_result(None)
        await settle()
        assert acknowledged == [0, 1, 2, 3]
        assert harness.task.open_records == 0
        harness.task.close()

    asyncio.run(scene())


def test_deliveries_are_awaited_in_order_while_feeding_goes_on() -> None:
    async def scene() -> None:
        kafka = FakeKafka(keep_back=True)
        harness = TaskHarness(kafka)
        for offset in range(4):
            await harness.take(offset, number("a", offset, 1))
            await settle()
        assert len(kafka.sent) == 2  # the second pair did not wait for the first one's delivery
        kafka.sent[1].delivered.set_result(None)
        await settle()
        assert harness.acknowledged[NUMBERS.name] == []
        kafka.sent[0].delivered.set_result(None)
        await settle()
        assert harness.acknowledged[NUMBERS.name] == [0, 1, 2, 3]
        harness.task.close()

    asyncio.run(scene())


def test_an_earlier_output_is_not_published_again_and_its_inputs_are_acknowledged() -> None:
    async def scene() -> None:
        kafka = FakeKafka()
        first = TaskHarness(kafka)
        inputs = (number("a", 0, 1), number("a", 1, 2), b"rubbish")
        for offset, record in enumerate(inputs):
            await first.take(offset, record)
        await settle()
        first.task.close()
        restored = start_of_log()
        restored.published = {
            (SUMS.name, kafka.sent[1].headers["tamiyo-id"]),
            (NUMBERS.dead_letters, "test.numbers:2"),
        }
        again = FakeKafka()
        second = TaskHarness(again, restored=restored)
        for offset, record in enumerate(inputs):
            await second.take(offset, record)
        await settle()
        assert again.sent == []
        assert second.acknowledged[NUMBERS.name] == [0, 1, 2]
        second.task.close()

    asyncio.run(scene())


def test_a_record_is_fed_once_and_a_gap_is_verified() -> None:
    async def scene() -> None:
        kafka = FakeKafka()
        harness = TaskHarness(kafka, restored=RestoredState({NUMBERS.name: 5, LETTERS.name: 0}))
        await harness.take(4, number("a", 0, 100))  # below where the task began
        await harness.take(5, number("a", 1, 1))
        await harness.take(5, number("a", 1, 1))  # sought back within the generation
        await harness.take(7, number("a", 2, 2))
        await settle()
        (sent,) = kafka.sent
        assert decode(sent.value, CacheHitRates).hits == 3
        assert kafka.gaps == [("test.numbers", 6, 7)]
        assert harness.acknowledged[NUMBERS.name] == [5, 7]
        harness.task.close()

    asyncio.run(scene())


def test_failures_of_records_that_are_not_read_again_are_forgotten() -> None:
    async def scene() -> None:
        tracker = PoisonTracker()
        tracker.record_failure([Incoming(NUMBERS.name, PARTITION, 4, 0, None)], ZeroDivisionError())
        tracker.record_failure([Incoming(NUMBERS.name, PARTITION, 5, 0, None)], ZeroDivisionError())
        harness = TaskHarness(FakeKafka(), restored=RestoredState({NUMBERS.name: 5, LETTERS.name: 0}), poison=tracker)
        assert [tracker.isolate(NUMBERS.name, offset) for offset in (4, 5)] == [False, True]
        harness.task.close()

    asyncio.run(scene())


def test_rejected_messages_are_published_unchanged() -> None:
    async def scene() -> None:
        kafka = FakeKafka()
        harness = TaskHarness(kafka)
        await harness.take(0, b"rubbish")
        await harness.take(1, number("a", 0, 666))
        await settle()
        dead, late = kafka.sent
        assert (dead.topic, dead.value) == ("test.numbers.dlq", b"rubbish")
        assert dead.headers["tamiyo-source"] == "test.numbers:1:0"
        assert dead.headers["tamiyo-reason"].startswith("DecodeError")
        assert (late.topic, late.headers["tamiyo-reason"]) == ("test.numbers.late", "the number of the beast")
        assert harness.acknowledged[NUMBERS.name] == [0, 1]
        harness.task.close()

    asyncio.run(scene())


@pytest.mark.parametrize(("replay", "backlog"), [(False, 999), (True, 0)])
def test_a_stage_has_the_backlog_behind_its_batch_but_not_in_a_replay(replay: bool, backlog: int) -> None:
    async def scene() -> None:
        harness = TaskHarness(FakeKafka(worker=WorkerSettings(max_batch=100, replay=replay)))
        harness.stage.backlog = 0
        await harness.take(0, number("a", 0, 1))
        await settle()
        assert harness.stage.backlog == backlog
        harness.task.close()

    asyncio.run(scene())


def test_a_bug_acknowledges_nothing() -> None:
    async def scene() -> None:
        kafka = FakeKafka()
        harness = TaskHarness(kafka)
        await harness.take(0, number("a", 0, 999))
        await settle()
        (error,) = kafka.failed
        assert isinstance(error, ZeroDivisionError)
        assert (harness.acknowledged[NUMBERS.name], kafka.sent) == ([], [])
        harness.task.close()

    asyncio.run(scene())


@pytest.mark.parametrize("how", ["lost", "closed"])
def test_a_lost_partition_is_neither_published_to_nor_acknowledged(how: str) -> None:
    async def scene() -> None:
        kafka = FakeKafka(keep_back=True, ours=how == "closed")
        harness = TaskHarness(kafka)
        await harness.take(0, number("a", 0, 1))
        await harness.take(1, number("a", 1, 2))
        await settle()
        assert len(kafka.sent) == (1 if how == "closed" else 0)
        harness.task.close()
        assert kafka.closed
        await settle()
        for each in kafka.sent:
            if not each.delivered.cancelled():
                each.delivered.set_result(None)
        await settle()
        assert harness.acknowledged[NUMBERS.name] == []
        await harness.take(2, number("a", 2, 1))
        assert harness.task.open_records == 0

    asyncio.run(scene())


def test_draining_waits_for_deliveries_and_feeds_nothing_more() -> None:
    async def scene() -> None:
        kafka = FakeKafka(keep_back=True)
        harness = TaskHarness(kafka)
        await harness.take(0, number("a", 0, 1))
        await harness.take(1, number("a", 1, 2))
        await settle()
        draining = asyncio.create_task(harness.task.drain())
        await harness.take(2, number("a", 2, 1))
        await settle()
        assert not draining.done()
        kafka.sent[0].delivered.set_result(None)
        await asyncio.wait_for(draining, 5)
        assert harness.acknowledged[NUMBERS.name] == [0, 1]
        assert harness.task.positions[NUMBERS.name] == 2
        harness.task.close()

    asyncio.run(scene())


def test_progress_changes_with_every_record_and_delivery_and_a_task_is_busy_until_the_last() -> None:
    async def scene() -> None:
        kafka = FakeKafka(keep_back=True)
        harness = TaskHarness(kafka)
        seen = [harness.task.progress]
        assert not harness.task.busy
        for offset in range(2):
            await harness.take(offset, number("a", offset, 1))
            assert harness.task.busy
            await settle()
            seen.append(harness.task.progress)
        assert harness.task.busy  # its output is not delivered
        kafka.sent[0].delivered.set_result(None)
        await settle()
        seen.append(harness.task.progress)
        assert len(set(seen)) == len(seen)
        assert not harness.task.busy
        harness.task.close()

    asyncio.run(scene())


def test_records_queue_while_the_stage_is_restored_and_a_full_buffer_makes_the_stream_wait() -> None:
    async def scene() -> None:
        fake: Any = FakeKafka(worker=WorkerSettings(max_batch=2))
        task = PartitionTask(PairStage, 1, fake.worker, fake, fake, Acknowledged(NUMBERS.name), fake.fail)
        await task.take(NUMBERS.name, [record_at(each, b"") for each in range(4)])
        assert not task.restored
        waiting = asyncio.create_task(task.take(NUMBERS.name, [record_at(4, b"")]))
        await asyncio.sleep(0)
        assert not waiting.done()
        task.close()
        await asyncio.wait_for(waiting, 5)
        assert task.open_records == 0

    asyncio.run(scene())


def test_a_fetch_larger_than_the_buffer_is_fed_whole_while_nothing_else_arrives() -> None:
    async def scene() -> None:
        kafka = FakeKafka(worker=WorkerSettings(max_batch=2))
        harness = TaskHarness(kafka)
        records = [record_at(offset, encode(number("a", offset, 1))) for offset in range(21)]
        taking = asyncio.create_task(harness.task.take(NUMBERS.name, records))
        await asyncio.wait_for(taking, 5)
        await settle()
        assert harness.task.positions[NUMBERS.name] == 21
        assert len(kafka.sent) == 10
        harness.task.close()

    asyncio.run(scene())
