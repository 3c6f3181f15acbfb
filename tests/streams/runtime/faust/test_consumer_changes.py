"""The changes to Faust's consumer, on stand-ins of the upstream objects."""

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import ConnectionGroup
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaConnectionError
from faust.transport.consumer import ConsumerThread
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer
from faust.types import TP

from tamiyo.streams.runtime.faust.app import StageConsumer, StageConsumerThread


class SeekingConsumer:
    """Two assigned partitions, of which one has a committed offset."""

    def __init__(self) -> None:
        self.sought: dict[TopicPartition, Any] = {}

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition("t", 0), TopicPartition("t", 1)}

    async def committed(self, partition: TopicPartition) -> int | None:
        return 0 if partition.partition == 0 else None

    async def seek_to_beginning(self, partition: TopicPartition) -> None:
        self.sought[partition] = "beginning"

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.sought[partition] = offset


async def nothing(*_: Any) -> None:
    pass


def thread(**attributes: Any) -> Any:
    made = StageConsumerThread.__new__(StageConsumerThread)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def test_a_partition_without_a_committed_offset_is_sought_to_its_beginning() -> None:
    consumer = SeekingConsumer()

    async def call(function: Any, *arguments: Any) -> Any:
        return await function(*arguments)

    made = thread(_consumer=consumer, call_thread=call)
    assert asyncio.run(made.seek_to_committed()) == {TP("t", 0): 0}
    assert consumer.sought == {TopicPartition("t", 0): 0, TopicPartition("t", 1): "beginning"}
    assert asyncio.run(made.committed({TP("t", 0), TP("t", 1)})) == {TP("t", 0): 0, TP("t", 1): None}


def test_only_an_accepted_heartbeat_and_an_assignment_renew_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = iter((True, False))

    async def do_heartbeat() -> bool:
        return next(accepted)

    monkeypatch.setattr(AIOKafkaConsumerThread, "on_start", nothing)
    monkeypatch.setattr(AIOKafkaConsumerThread, "on_partitions_assigned", nothing)
    cleared: list[bool] = []

    async def scene() -> None:
        coordinator = SimpleNamespace(_do_heartbeat=do_heartbeat)
        made = thread(
            _consumer=SimpleNamespace(_coordinator=coordinator),
            _synchronization=SimpleNamespace(clear=lambda: cleared.append(True)),
        )
        await made.on_start()
        began = time.monotonic()
        assert made.last_heartbeat == 0
        assert await coordinator._do_heartbeat()
        assert made.last_heartbeat >= began
        made.last_heartbeat = 0
        assert not await coordinator._do_heartbeat()
        assert made.last_heartbeat == 0
        await made.on_partitions_assigned(set(), 1)
        assert made.last_heartbeat >= began
        assert cleared == [True]

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("flow", "control", "buffered", "full", "direct"),
    [
        (True, True, 0, False, True),
        (False, True, 0, False, False),
        (True, False, 0, False, False),
        (True, True, 1, False, False),
        (True, True, 0, True, False),
    ],
)
def test_a_message_is_handed_over_directly_only_if_that_cannot_block(
    monkeypatch: pytest.MonkeyPatch, flow: bool, control: bool, buffered: int, full: bool, direct: bool
) -> None:
    raced: list[int] = []

    async def race(self: Any, *waiting: Any, **_: Any) -> str:
        raced.append(len(waiting))
        for each in waiting:
            each.close()
        return "raced"

    async def message() -> str:
        return "handed over"

    async def suspended() -> None:
        raise AssertionError("the flow is not suspended")

    async def scene() -> None:
        consumer = StageConsumer.__new__(StageConsumer)
        consumer.flow_active = flow
        consumer.app = SimpleNamespace(
            flow_control=SimpleNamespace(is_active=lambda: control),
            producer=SimpleNamespace(buffer=SimpleNamespace(pending=SimpleNamespace(qsize=lambda: buffered))),
            topics=[SimpleNamespace(queue=SimpleNamespace(full=lambda: full))],
        )
        assert await consumer.wait_first(message(), suspended()) == ("handed over" if direct else "raced")
        assert await consumer.wait_first(message()) == "raced"  # another of Faust's uses

    monkeypatch.setattr(Consumer, "wait_first", race)
    asyncio.run(scene())
    assert raced == ([1] if direct else [2, 1])


def test_an_offset_that_faust_has_noted_drops_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust drops messages below it, and a suspended hand-over notes one of the assignment before."""
    monkeypatch.setattr(Consumer, "__init__", lambda self: None)

    async def scene() -> list[int]:
        handed: list[int] = []
        consumer = StageConsumer()
        consumer._read_offset.update({A: 7})
        consumer._read_offset[B] = 9
        stopped = asyncio.Event()

        async def callback(message: Any) -> None:
            handed.append(message.offset)

        async def getmany(timeout: float) -> AsyncIterator[tuple[TP, Any]]:
            for offset in (0, 8, 3):
                yield A, SimpleNamespace(offset=offset, topic="t", key=None, value=None)
            stopped.set()

        async def wait_first(*waiting: Any) -> None:
            await waiting[0]
            waiting[1].close()

        for name, value in {
            "callback": callback,
            "getmany": getmany,
            "wait_first": wait_first,
            "_stopped": stopped,
            "_crashed": asyncio.Event(),
            "diag": SimpleNamespace(set_flag=lambda flag: None, unset_flag=lambda flag: None),
            "_commit_every": None,
            "suspend_flow": asyncio.Event(),
            "app": SimpleNamespace(topics=SimpleNamespace(acks_enabled_for=lambda topic: False)),
            "sleep": asyncio.sleep,
        }.items():
            setattr(consumer, name, value)
        await consumer._drain_messages(SimpleNamespace(_stopped=asyncio.Event()))
        assert [consumer._read_offset.pop(each, None) for each in (B, TP("t", 2))] == [9, None]  # as Faust removes them
        return handed

    assert asyncio.run(scene()) == [0, 8, 3]


A, B = TP("t", 0), TP("t", 1)


def record(offset: int) -> Any:
    return SimpleNamespace(offset=offset, timestamp=1_500, timestamp_type=0)


class Fetching:
    """A consumer whose next fetch brings given records."""

    def __init__(self, records: dict[TP, list[Any]] | None, **more: Any) -> None:
        self.sought = 0
        made = self.consumer = StageConsumer.__new__(StageConsumer)

        async def fetch(timeout: float) -> tuple[dict[TP, list[Any]] | None, set[TP] | None]:
            return records, more.get("active", {A, B})

        async def seek() -> None:
            self.sought += 1

        made._wait_next_records = fetch
        made.perform_seek = seek
        made.flow_active = more.get("flow", True)
        made._buffered_partitions = set()
        made._done = {}
        made.app = SimpleNamespace(consumer_generation_id=7)

    async def read(self, after_first: Any = lambda: None) -> list[tuple[TP, list[int], int]]:
        found = []
        async for tp, message in self.consumer.getmany(1.0):
            found.append((tp, [each.offset for each in message.value], message.generation_id))
            after_first()
        return found


@pytest.fixture(autouse=True)
def running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StageConsumer, "should_stop", False)


def test_a_fetch_is_handed_over_as_one_message_a_partition() -> None:
    fetching = Fetching({A: [record(3), record(4)], B: [record(9)], TP("t", 2): []})
    assert asyncio.run(fetching.read()) == [(A, [3, 4], 7), (B, [9], 7)]
    assert asyncio.run(Fetching({A: [record(3)], B: [record(9)]}, active={B}).read()) == [(B, [9], 7)]
    assert asyncio.run(Fetching(None).read()) == []


def test_nothing_of_a_fetch_is_handed_over_once_the_partitions_are_others() -> None:
    records = {A: [record(3)], B: [record(9)]}
    rebalanced = Fetching(records)
    assert len(asyncio.run(rebalanced.read(lambda: setattr(rebalanced.consumer.app, "consumer_generation_id", 8)))) == 1
    suspended = Fetching(records)
    assert len(asyncio.run(suspended.read(lambda: setattr(suspended.consumer, "flow_active", False)))) == 1
    paused = Fetching(records, flow=False)
    assert asyncio.run(paused.read()) == []
    assert paused.sought == 1


def test_commits_move_to_what_was_acknowledged_and_to_nothing_after_a_rebalance() -> None:
    consumer = Fetching({}).consumer
    assert consumer._new_offset(A) is None
    consumer.acknowledge(A, 5)
    consumer.acknowledge(A, 8)
    consumer.acknowledge(B, 1)
    assert (consumer._new_offset(A), consumer._new_offset(B)) == (8, 1)
    assert set(consumer._filter_tps_with_pending_acks()) == {A, B}
    assert set(consumer._filter_tps_with_pending_acks({A})) == {A}
    consumer.forget_acknowledged()
    assert not list(consumer._filter_tps_with_pending_acks())
    assert consumer._new_offset(A) is None


class LostClient:
    """A client whose broker is away."""

    closed = False

    async def send(self, node: int, request: Any) -> Any:
        raise KafkaConnectionError("closed")

    async def close(self) -> None:
        self.closed = True


async def stop_with_a_fetch_that_waits(client: LostClient) -> None:
    """Stop a consumer whose fetch has failed and waits for its next attempt."""
    fetcher = Fetcher.__new__(Fetcher)
    fetcher._client, fetcher._retry_backoff, fetcher._fetch_waiters = client, 60.0, set()
    fetcher._preferred_read_replica = {}
    fetcher._fetch_task = asyncio.ensure_future(asyncio.sleep(60))
    fetch = fetcher._proc_fetch_request(None, 1, SimpleNamespace(topics=[]))
    fetcher._pending_tasks = {asyncio.ensure_future(fetch)}
    await asyncio.sleep(0)
    consumer = AIOKafkaConsumer(bootstrap_servers="127.0.0.1:1")
    consumer._fetcher, consumer._client = fetcher, client
    try:
        await thread(_consumer=consumer).on_thread_stop()
    finally:
        consumer._closed = True


def test_a_consumer_stops_while_a_failed_fetch_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConsumerThread, "on_thread_stop", nothing)
    client = LostClient()
    asyncio.run(stop_with_a_fetch_that_waits(client))
    assert client.closed


@pytest.mark.parametrize("error", [None, KafkaConnectionError("away")])
def test_a_consumer_leaves_its_group_while_it_joins(
    monkeypatch: pytest.MonkeyPatch, error: KafkaConnectionError | None
) -> None:
    monkeypatch.setattr(ConsumerThread, "on_thread_stop", nothing)
    sent: list[Any] = []

    async def send(node: int, request: Any, group: ConnectionGroup) -> None:
        sent.append((node, request, group))
        if error is not None:
            raise error

    async def scene() -> None:
        join = asyncio.ensure_future(asyncio.sleep(3600))
        coordinator = GroupCoordinator.__new__(GroupCoordinator)
        coordinator.__dict__ |= {
            "_subscription": SimpleNamespace(subscription=SimpleNamespace(assignment=None)), "_coordination_task": join,
            "coordinator_id": 4, "group_id": "g", "member_id": "m", "reset_generation": lambda: sent.append("reset"),
        }  # fmt: skip
        consumer: Any = SimpleNamespace(_coordinator=coordinator, _client=SimpleNamespace(send=send), stop=nothing)
        await thread(_consumer=consumer).on_thread_stop()
        assert join.cancelled()

    asyncio.run(scene())
    (node, request, group), after = sent
    assert (node, request._group, request._member_id, group) == (4, "g", "m", ConnectionGroup.DEFAULT)
    assert after == "reset"


def test_a_stop_that_is_cancelled_itself_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(_: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(ConsumerThread, "on_thread_stop", wait)

    async def scene() -> None:
        stopping = asyncio.ensure_future(stop_with_a_fetch_that_waits(LostClient()))
        await asyncio.sleep(0.01)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping

    asyncio.run(scene())
