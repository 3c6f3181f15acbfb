"""Three checks of a stage's runner: each ends the process when the stage will not recover by itself."""

import asyncio

import structlog
from aiokafka.errors import KafkaError

from tamiyo.schemas.errors import BrokerError
from tamiyo.streams.process.watchdog import CHECKS, StallDetector
from tamiyo.streams.runtime.stage_runner import StageRunner

log = structlog.get_logger(__name__)

CRASH_CHECK_S = 0.2


def start(runner: StageRunner) -> list[asyncio.Task[None]]:
    """Start the checks of one runner; cancel the returned tasks to end them."""
    return [
        asyncio.create_task(check_crash(runner), name=f"{runner.name}-crash"),
        asyncio.create_task(check_coordination(runner), name=f"{runner.name}-coordination"),
        asyncio.create_task(check_progress(runner), name=f"{runner.name}-progress"),
    ]


async def check_crash(runner: StageRunner) -> None:
    """End a process whose Faust app has crashed, or whose compacted topics are not read any more."""
    while not runner.app.crashed and runner.views.ended is None:  # noqa: ASYNC110 - mode's event is private
        await asyncio.sleep(CRASH_CHECK_S)
    if runner.stopping:
        return
    if runner.views.ended is not None:
        runner.fail(runner.views.ended, {"stage": runner.name, "while": "reading compacted topics"})
    else:
        runner.fail(BrokerError(f"Faust crashed: {runner.app.crash_reason!r}"), {"stage": runner.name})


async def check_coordination(runner: StageRunner) -> None:
    """Let a consumer that its group refused try again, and end a process whose consumer is refused every time."""
    detector = StallDetector()
    retries = 0
    while True:
        await asyncio.sleep(runner.worker.watchdog.coordination_s / CHECKS)
        failure = runner.app.consumer_thread.group_failure
        if detector.check(failure) < 2 or runner.stopping:
            continue  # while it fetches, Faust takes the failure itself
        if failure is None:
            retries = 0 if runner.assigned else retries
        elif retries < CHECKS - 2:
            retries += 1
            log.warning("group refused the consumer, trying again", stage=runner.name, error=repr(failure))
            await runner.app.consumer_thread.clear_group_failure()
        else:
            text = f"watchdog: the consumer's coordination with its group has failed: {failure!r}"
            runner.fail(BrokerError(text), {"stage": runner.name})


async def check_progress(runner: StageRunner) -> None:
    """End a process that makes no progress: work waits, the broker responds, and nothing moves for too long."""
    detector = StallDetector()
    timeout_s = runner.worker.watchdog.progress_s
    while True:
        await asyncio.sleep(timeout_s / CHECKS)
        progress = runner.progress
        unchanged = detector.check(progress)
        if unchanged < CHECKS // 2 or runner.stopping:
            continue  # so an idle stage queries the broker only now and then
        work = await _waiting_work(runner)
        if work is None:
            detector.reset()
        elif unchanged >= CHECKS and progress == runner.progress:
            text = f"watchdog: nothing has moved for {timeout_s:.0f} s, though {work}"
            runner.fail(BrokerError(text), {"stage": runner.name, "partitions": runner.partitions})


async def _waiting_work(runner: StageRunner) -> str | None:
    """Return what the stage should be doing; None if it is idle for good reason, or the broker is down."""
    try:
        async with runner.reader() as reader:
            if not runner.assigned:
                return "the group has assigned no partitions"
            for number, task in tuple(runner.tasks.items()):
                if not task.restored:
                    return f"partition {number} is still restoring its earlier outputs"
                if task.busy:
                    return f"records of partition {number} wait to be fed or delivered"
                for topic, offset in tuple(task.positions.items()):
                    # The end offset is no evidence: a transaction's marker, or a deleted record, is never read.
                    found = await reader.first_after(runner.names.full(topic), number, offset)
                    if found is not None:
                        return f"{topic}/{number} was read to offset {offset} only, and has a record at {found}"
    except (KafkaError, BrokerError):
        pass
    return None
