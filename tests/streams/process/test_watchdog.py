"""A process that makes no progress ends with status 75; one that is idle for good reason does not."""

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import KafkaConnectionError, KafkaError

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.process.exit_codes import EXIT_TEMPFAIL
from tamiyo.streams.process.watchdog import LoopWatch, StallDetector
from tamiyo.streams.runtime import liveness, stage_runner
from tamiyo.streams.runtime.faust.app import StageApp, StageConsumerThread
from tamiyo.streams.settings import WatchdogSettings
from tests.streams.runtime.runners import make_runner
from tests.support.kafka_log import KafkaLog
from tests.support.pairs import NUMBERS, SUMS, number
from tests.support.workers import TOPICS, Process, enough, expected, numbers, sums


def test_a_stall_detector_counts_checks_that_found_the_same() -> None:
    detector = StallDetector()
    assert [detector.check(value) for value in ("a", "a", "a", "b", "b", "a")] == [0, 1, 2, 0, 1, 0]
    detector.check("a")
    detector.reset()
    assert detector.check("a") == 1


def test_a_blocked_loop_is_found_by_its_thread(capfd: pytest.CaptureFixture[str]) -> None:
    ends: list[tuple[int, str]] = []
    found = threading.Event()
    turns = 0

    def end(status: int, message: str) -> None:
        ends.append((status, message))
        found.set()

    async def scene() -> bool:
        nonlocal turns
        watch = LoopWatch("the event loop", lambda: turns, 0.4, end=end)
        watch.start()
        for turns in range(20):  # noqa: B007 - the thread reads it
            await asyncio.sleep(0.05)
        assert ends == []
        blocked = found.wait(5)
        watch.stop()
        return blocked

    assert asyncio.run(scene())
    assert ends == [(EXIT_TEMPFAIL, "watchdog: the event loop has not turned for 0 s")]
    assert "test_watchdog.py" in capfd.readouterr().err  # where it hangs


PROGRESS_S = 0.2


class Reader:
    """Stands in for OutputLogReader: the first offset after a position, or no broker at all."""

    def __init__(self, found: int | None, error: Exception | None = None) -> None:
        self._found, self._error = found, error

    def __call__(self, *_: Any, **__: Any) -> "Reader":
        return self

    async def __aenter__(self) -> "Reader":
        if self._error is not None:
            raise self._error
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def first_after(self, topic: str, partition: int, offset: int) -> int | None:
        return self._found


async def checked(
    monkeypatch: pytest.MonkeyPatch, reader: Reader, *, assigned: bool = True, moving: bool = False, **task: Any
) -> str | None:
    """Return what ended a runner within four timeouts of the check of its progress, and not before one."""
    failures: list[BaseException] = []
    runner = make_runner(WatchdogSettings(progress_s=PROGRESS_S))
    monkeypatch.setattr(stage_runner, "OutputLogReader", reader)
    monkeypatch.setattr(runner, "fail", lambda error, at: failures.append(error))
    runner.assigned = assigned
    state = {"restored": True, "busy": False, "positions": {NUMBERS.name: 5}, "progress": 0, **task}
    fake: Any = SimpleNamespace(**state)
    runner.tasks = {0: fake} if assigned else {}
    checking = asyncio.create_task(liveness.check_progress(runner))
    began = time.monotonic()
    while time.monotonic() < began + 4 * PROGRESS_S and not failures:
        fake.progress += moving
        await asyncio.sleep(0.01)
    assert not failures or time.monotonic() >= began + PROGRESS_S
    checking.cancel()
    await asyncio.gather(checking, return_exceptions=True)
    return str(failures[0]) if failures else None


@pytest.mark.parametrize(
    ("found", "state", "message"),
    [
        (7, {}, "test.numbers/0 was read to offset 5 only, and has a record at 7"),
        (None, {"busy": True}, "wait to be fed or delivered"),
        (None, {"restored": False}, "is still restoring its earlier outputs"),
        (None, {"assigned": False}, "the group has assigned no partitions"),
    ],
)
def test_a_process_whose_work_waits_and_does_not_move_ends(
    monkeypatch: pytest.MonkeyPatch, found: int | None, state: dict[str, Any], message: str
) -> None:
    ended = asyncio.run(checked(monkeypatch, Reader(found), **state))
    assert ended is not None
    assert ended.startswith("watchdog: nothing has moved")
    assert message in ended


@pytest.mark.parametrize(
    ("reader", "state"),
    [
        (Reader(None), {}),  # everything is read; open records may stay open
        (Reader(7), {"moving": True}),
        (Reader(7, KafkaConnectionError("away")), {}),  # the broker is away, not the consumer
        (Reader(7, KafkaConnectionError("away")), {"assigned": False}),
        (Reader(None, KafkaConnectionError("away")), {"busy": True}),
    ],
)
def test_a_process_that_is_idle_or_moves_or_has_no_broker_goes_on(
    monkeypatch: pytest.MonkeyPatch, reader: Reader, state: dict[str, Any]
) -> None:
    assert asyncio.run(checked(monkeypatch, reader, **state)) is None


def test_an_ended_or_paused_coordination_is_found() -> None:
    refused = KafkaError("InvalidRequestError()")

    async def die() -> None:
        raise refused

    async def scene() -> None:
        found: Any = StageConsumerThread.group_failure
        failure: Callable[[Any], BaseException | None] = found.fget
        running = asyncio.create_task(asyncio.sleep(60))
        dead = asyncio.create_task(die())
        await asyncio.wait({dead})
        assert failure(SimpleNamespace(_consumer=None)) is None
        for task, pending, expected_ in ((running, None, None), (running, refused, refused), (dead, None, refused)):
            coordinator = SimpleNamespace(_coordination_task=task, _pending_exception=pending)
            assert failure(SimpleNamespace(_consumer=SimpleNamespace(_coordinator=coordinator))) is expected_
        running.cancel()

    asyncio.run(scene())


def test_aiokafka_still_has_the_private_attributes_of_its_coordination() -> None:
    async def scene() -> None:
        client = AIOKafkaClient(bootstrap_servers="127.0.0.1:1")
        coordinator = GroupCoordinator(client, SubscriptionState(), group_id="g")
        assert not coordinator._coordination_task.done()
        assert coordinator._pending_exception is None
        await coordinator.close()
        await client.close()

    asyncio.run(scene())


@pytest.mark.parametrize("lasting", [False, True])
def test_a_refused_consumer_tries_again_and_one_refused_for_long_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, lasting: bool
) -> None:
    ends: list[int] = []
    retries: list[BaseException | None] = []
    thread = SimpleNamespace(group_failure=None)

    async def retry() -> None:
        retries.append(thread.group_failure)
        thread.group_failure = thread.group_failure if lasting else None

    async def scene() -> None:
        runner = make_runner(WatchdogSettings(coordination_s=0.2), end_process=ends.append)
        monkeypatch.setattr(StageApp, "consumer_thread", thread)
        thread.clear_group_failure = retry
        checking = asyncio.create_task(liveness.check_coordination(runner))
        await asyncio.sleep(0.5)
        assert (ends, retries) == ([], [])
        thread.group_failure = KafkaError("InvalidRequestError()")
        await asyncio.sleep(0.6)
        checking.cancel()
        await asyncio.gather(checking, return_exceptions=True)

    asyncio.run(scene())
    assert len(retries) == (6 if lasting else 1)
    assert (EXIT_TEMPFAIL in ends) is lasting


@pytest.mark.flow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "watchdog: the event loop has not turned for 2 s"),
        (("offload",), "watchdog: nothing has moved for 8 s, though records of partition"),
    ],
)
def test_a_stage_that_hangs_ends_its_process(
    kafka: KafkaSettings,
    names: TopicNames,
    kafka_log: KafkaLog,
    start: Callable[..., Process],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    Topics(kafka, names, TOPICS).touch()
    worker = start(kafka, *arguments, TAMIYO_WATCHDOG_LOOP_S=2, TAMIYO_WATCHDOG_PROGRESS_S=8).wait_until_ready(4)
    kafka_log.publish(NUMBERS, [number("run", 0, 1), number("run", 1, 888)])
    assert worker.process.wait(40) == EXIT_TEMPFAIL
    assert message in worker.log.read_text().splitlines()[-1]
    assert "without further commits" in worker.log.read_text().splitlines()[-1]
    assert kafka_log.committed("tamiyo_pairs", NUMBERS.name) == {}


@pytest.mark.flow
def test_an_idle_or_a_frozen_process_is_not_taken_for_a_hung_one(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, start: Callable[..., Process]
) -> None:
    Topics(kafka, names, TOPICS).touch()
    worker = start(kafka, TAMIYO_WATCHDOG_LOOP_S=2, TAMIYO_WATCHDOG_PROGRESS_S=8).wait_until_ready(4)
    kafka_log.publish(NUMBERS, numbers(0, 3))  # the last of each run stays open, unacknowledged
    kafka_log.wait_for(SUMS.name, enough(8))
    time.sleep(10)
    worker.process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    worker.process.send_signal(signal.SIGCONT)
    kafka_log.publish(NUMBERS, numbers(3, 4))
    assert sums(kafka_log.wait_for(SUMS.name, enough(16))) == expected(4)
    time.sleep(1)
    assert worker.end(signal.SIGTERM) == 0, worker.log.read_text()
