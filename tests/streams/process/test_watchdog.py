"""What does not get on is ended with status 75; what waits for good reason is not."""

import asyncio
import contextlib
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
from faust.types import TP

from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.process.exit_codes import EXIT_TEMPFAIL
from tamiyo.streams.process.watchdog import LoopWatch, StallDetector
from tamiyo.streams.runtime import liveness as watches
from tamiyo.streams.runtime import stage_runner as shells
from tamiyo.streams.runtime.faust.app import StageConsumerThread
from tamiyo.streams.runtime.stage_runner import StageRunner
from tamiyo.streams.runtime.views import Views
from tamiyo.streams.settings import WatchdogSettings, WorkerSettings
from tests.support.kafka_log import KafkaLog
from tests.support.pairs import NUMBERS, SUMS, PairSettings, PairStage, number
from tests.support.workers import TOPICS, Process, enough, expected, numbers, sums


def test_stillness_counts_looks_that_found_the_same() -> None:
    still = StallDetector()
    assert [still.check(sign) for sign in ("a", "a", "a", "b", "b", "a")] == [0, 1, 2, 0, 1, 0]
    still.check("a")
    still.reset()
    assert still.check("a") == 1


def test_a_blocked_loop_is_found_by_its_thread(capfd: pytest.CaptureFixture[str]) -> None:
    ends: list[tuple[int, str]] = []
    found = threading.Event()
    turns = 0

    def end(status: int, words: str) -> None:
        ends.append((status, words))
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
    assert ends == [(EXIT_TEMPFAIL, "watchdog: the event loop has not come round for 0 s")]
    assert "test_watchdog.py" in capfd.readouterr().err  # where it hangs


class Reader:
    """Instead of a TailReader: what lies at or after a position, or no broker at all."""

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


def make_shell(watchdog: WatchdogSettings, **more: Any) -> StageRunner:
    kafka, names = KafkaSettings(), TopicNames()
    return StageRunner(
        PairStage,
        PairSettings(),
        group="g",
        kafka=kafka,
        names=names,
        worker=WorkerSettings(watchdog=watchdog),
        views=Views((), kafka, names, fetch_wait_ms=10),
        fetch_wait_ms=10,
        **more,
    )


async def watched(
    monkeypatch: pytest.MonkeyPatch, reader: Reader, *, assigned: bool = True, moving: bool = False, **tenure: Any
) -> str | None:
    """Return what ended a shell within four patiences of its watch over its progress."""
    failures: list[BaseException] = []
    shell = make_shell(WatchdogSettings(progress_s=0.2))
    monkeypatch.setattr(shells, "OutputLogReader", reader)
    monkeypatch.setattr(shell, "fail", lambda error, at: failures.append(error))
    shell.assigned = assigned
    held: Any = SimpleNamespace(**{"stage": 1, "busy": False, "positions": {NUMBERS.name: 5}, "progress": 0, **tenure})
    shell.tenures = {0: held} if assigned else {}
    watching = asyncio.create_task(watches.watch_progress(shell))
    deadline = time.monotonic() + 0.8
    while time.monotonic() < deadline and not failures:
        held.progress += moving
        await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return str(failures[0]) if failures else None


@pytest.mark.parametrize(
    ("lies_there", "committed", "fine"),
    [(None, 5, True), (7, 5, True), (5, 7, True), (5, 8, True), (5, 6, False), (5, 5, False), (5, None, False)],
)
def test_a_gap_is_fine_where_nothing_lies_or_what_lies_there_was_acknowledged(
    monkeypatch: pytest.MonkeyPatch, lies_there: int | None, committed: int | None, fine: bool
) -> None:
    async def look(places: set[TP]) -> dict[TP, int | None]:
        return dict.fromkeys(places, committed)

    shell = make_shell(WatchdogSettings())
    monkeypatch.setattr(shells, "OutputLogReader", Reader(lies_there))
    monkeypatch.setattr(StageRunner, "thread", SimpleNamespace(committed=look))
    with contextlib.nullcontext() if fine else pytest.raises(BrokerError, match="skipped from offset 5 to 7"):
        asyncio.run(shell.verify_gap(NUMBERS.name, 0, 5, 7))


@pytest.mark.parametrize(
    ("found", "state", "words"),
    [
        (7, {}, "test.numbers/0 was read to offset 5 only, and 7 is there"),
        (None, {"busy": True}, "wait to be fed or delivered"),
        (None, {"stage": None}, "is to recall what it said"),
        (None, {"assigned": False}, "the group has assigned no partitions"),
    ],
)
def test_what_waits_and_does_not_move_is_ended(
    monkeypatch: pytest.MonkeyPatch, found: int | None, state: dict[str, Any], words: str
) -> None:
    ended = asyncio.run(watched(monkeypatch, Reader(found), **state))
    assert ended is not None
    assert ended.startswith("watchdog: nothing has moved")
    assert words in ended


@pytest.mark.parametrize(
    ("reader", "state"),
    [
        (Reader(None), {}),  # all is read; what is held is held rightly
        (Reader(7), {"moving": True}),
        (Reader(7, KafkaConnectionError("away")), {}),  # the broker is away, not the consumer
        (Reader(7, KafkaConnectionError("away")), {"assigned": False}),
        (Reader(None, KafkaConnectionError("away")), {"busy": True}),
    ],
)
def test_what_rests_or_moves_or_has_no_broker_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, reader: Reader, state: dict[str, Any]
) -> None:
    assert asyncio.run(watched(monkeypatch, reader, **state)) is None


def test_a_dead_or_unheeded_coordination_is_seen() -> None:
    refused = KafkaError("InvalidRequestError()")

    async def die() -> None:
        raise refused

    async def scene() -> None:
        idle: Any = StageConsumerThread.group_failure
        trouble: Callable[[Any], BaseException | None] = idle.fget
        running = asyncio.create_task(asyncio.sleep(60))
        dead = asyncio.create_task(die())
        await asyncio.wait({dead})
        assert trouble(SimpleNamespace(_consumer=None)) is None
        for task, pending, expected_ in ((running, None, None), (running, refused, refused), (dead, None, refused)):
            coordinator = SimpleNamespace(_coordination_task=task, _pending_exception=pending)
            assert trouble(SimpleNamespace(_consumer=SimpleNamespace(_coordinator=coordinator))) is expected_
        running.cancel()

    asyncio.run(scene())


def test_aiokafka_still_keeps_its_coordination_where_it_is_looked_for() -> None:
    async def scene() -> None:
        client = AIOKafkaClient(bootstrap_servers="127.0.0.1:1")
        coordinator = GroupCoordinator(client, SubscriptionState(), group_id="g")
        assert not coordinator._coordination_task.done()
        assert coordinator._pending_exception is None
        await coordinator.close()
        await client.close()

    asyncio.run(scene())


@pytest.mark.parametrize("lasting", [False, True])
def test_a_refusal_is_heeded_and_one_that_lasts_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, lasting: bool
) -> None:
    ends: list[int] = []
    heeds: list[BaseException | None] = []
    thread = SimpleNamespace(group_failure=None)

    async def heed() -> None:
        heeds.append(thread.group_failure)
        thread.group_failure = thread.group_failure if lasting else None

    async def scene() -> None:
        shell = make_shell(WatchdogSettings(coordination_s=0.2), end_process=ends.append)
        monkeypatch.setattr(StageRunner, "thread", property(lambda self: thread))
        thread.clear_group_failure = heed
        watching = asyncio.create_task(watches.watch_coordination(shell))
        await asyncio.sleep(0.5)
        assert (ends, heeds) == ([], [])
        thread.group_failure = KafkaError("InvalidRequestError()")
        await asyncio.sleep(0.6)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(scene())
    assert len(heeds) == (6 if lasting else 1)
    assert (EXIT_TEMPFAIL in ends) is lasting


@pytest.mark.flow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "watchdog: the event loop has not come round for 2 s"),
        (("offload",), "watchdog: nothing has moved for 8 s, though records of partition"),
    ],
)
def test_a_stage_that_hangs_ends_its_process(
    kafka: KafkaSettings,
    names: TopicNames,
    kafka_log: KafkaLog,
    start: Callable[..., Process],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    Topics(kafka, names, TOPICS).touch()
    worker = start(kafka, *arguments, TAMIYO_WATCHDOG_LOOP_S=2, TAMIYO_WATCHDOG_PROGRESS_S=8).wait_until_ready(4)
    kafka_log.say(NUMBERS, [number("run", 0, 1), number("run", 1, 888)])
    assert worker.process.wait(40) == EXIT_TEMPFAIL
    assert words in worker.log.read_text().splitlines()[-1]
    assert "acknowledges nothing more" in worker.log.read_text().splitlines()[-1]
    assert kafka_log.committed("tamiyo_pairs", NUMBERS.name) == {}


@pytest.mark.flow
def test_an_idle_or_a_frozen_process_is_not_taken_for_a_hung_one(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, start: Callable[..., Process]
) -> None:
    Topics(kafka, names, TOPICS).touch()
    worker = start(kafka, TAMIYO_WATCHDOG_LOOP_S=2, TAMIYO_WATCHDOG_PROGRESS_S=8).wait_until_ready(4)
    kafka_log.say(NUMBERS, numbers(0, 3))  # the last of each run stays open, unacknowledged
    kafka_log.wait_for(SUMS.name, enough(8))
    time.sleep(10)
    worker.process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    worker.process.send_signal(signal.SIGCONT)
    kafka_log.say(NUMBERS, numbers(3, 4))
    assert sums(kafka_log.wait_for(SUMS.name, enough(16))) == expected(4)
    time.sleep(1)
    assert worker.end(signal.SIGTERM) == 0, worker.log.read_text()
