"""Three watches over a stage's shell: each ends the process where the stage will not get on by itself."""

import asyncio

import structlog
from aiokafka.errors import KafkaError

from tamiyo.schemas.errors import BrokerError
from tamiyo.streams.process.watchdog import LOOKS, StallDetector
from tamiyo.streams.runtime.stage_runner import StageRunner

log = structlog.get_logger(__name__)


def start(shell: StageRunner) -> list[asyncio.Task[None]]:
    """Start the watches over one stage; cancel the returned tasks to end them."""
    return [
        asyncio.create_task(watch_crash(shell), name=f"{shell.name}-crash"),
        asyncio.create_task(watch_coordination(shell), name=f"{shell.name}-coordination"),
        asyncio.create_task(watch_progress(shell), name=f"{shell.name}-progress"),
    ]


async def watch_crash(shell: StageRunner) -> None:
    """End a process whose Faust has given up, or whose compacted topics are read no more."""
    while not shell.app.crashed and shell.views.ended is None:  # noqa: ASYNC110 - mode's event is private
        await asyncio.sleep(0.2)
    if shell.stopping:
        return
    if shell.views.ended is not None:
        shell.fail(shell.views.ended, at={"stage": shell.name, "while": "reading compacted topics"})
    else:
        shell.fail(BrokerError(f"Faust gave up: {shell.app.crash_reason!r}"), at={"stage": shell.name})


async def watch_coordination(shell: StageRunner) -> None:
    """Let a consumer that its group refused try again, and end a process whose consumer is refused every time."""
    still = StallDetector()
    heeded = 0
    while True:
        await asyncio.sleep(shell.worker.watchdog.coordination_s / LOOKS)
        trouble = shell.thread.group_failure
        if still.check(trouble) < 2 or shell.stopping:
            continue  # Faust heeds it by itself where it is fetching
        if trouble is None:
            heeded = 0 if shell.assigned else heeded
        elif heeded < LOOKS - 2:
            heeded += 1
            log.warning("the group refused this consumer, which tries again", stage=shell.name, error=repr(trouble))
            await shell.thread.clear_group_failure()
        else:
            words = f"watchdog: the consumer's coordination with its group has failed: {trouble!r}"
            shell.fail(BrokerError(words), at={"stage": shell.name})


async def watch_progress(shell: StageRunner) -> None:
    """End a process that does not get on: something waits, the broker answers, and nothing moves for too long."""
    still = StallDetector()
    patience_s = shell.worker.watchdog.progress_s
    while True:
        await asyncio.sleep(patience_s / LOOKS)
        sign = shell.progress
        looks = still.check(sign)
        if looks < LOOKS // 2 or shell.stopping:
            continue  # an idle stage asks the broker now and then only
        waiting = await _waiting(shell)
        if waiting is None:
            still.reset()
        elif looks >= LOOKS and sign == shell.progress:
            words = f"watchdog: nothing has moved for {patience_s:.0f} s, though {waiting}"
            shell.fail(BrokerError(words), at={"stage": shell.name, "partitions": shell.partitions})


async def _waiting(shell: StageRunner) -> str | None:
    """Return what the stage should get on with; None where it rightly rests, or the broker is away."""
    try:
        async with shell.reader() as reader:
            if not shell.assigned:
                return "the group has assigned no partitions"
            for number, tenure in tuple(shell.tenures.items()):
                if tenure.stage is None:
                    return f"partition {number} is to recall what it said"
                if tenure.busy:
                    return f"records of partition {number} wait to be fed or delivered"
                for topic, offset in tuple(tenure.positions.items()):
                    # The end alone does not tell: a transaction's marker, or what was deleted, is never read.
                    found = await reader.first_after(shell.names.full(topic), number, offset)
                    if found is not None:
                        return f"{topic}/{number} was read to offset {offset} only, and {found} is there"
    except (KafkaError, BrokerError):
        pass
    return None
