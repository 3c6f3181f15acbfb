"""What a shell knows about its own membership."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.process.exit_codes import EXIT_SOFTWARE, EXIT_TEMPFAIL
from tamiyo.streams.runtime import liveness as watches
from tamiyo.streams.runtime.stage_runner import StageRunner
from tamiyo.streams.runtime.views import Views
from tamiyo.streams.settings import WorkerSettings
from tests.support.pairs import PairSettings, PairStage


class Ended(Exception):
    """Instead of the process."""


def make_shell() -> StageRunner:
    def end(status: int) -> None:
        raise Ended(status)

    kafka, names = KafkaSettings(), TopicNames()
    return StageRunner(
        PairStage,
        PairSettings(),
        group="g",
        kafka=kafka,
        names=names,
        worker=WorkerSettings(),
        views=Views((), kafka, names, fetch_wait_ms=10),
        fetch_wait_ms=10,
        end_process=end,
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ZeroDivisionError("a bug"), EXIT_SOFTWARE),
        (BrokerError("away"), EXIT_TEMPFAIL),
        (TimeoutError(), EXIT_TEMPFAIL),
    ],
)
def test_a_bug_and_a_broken_broker_end_differently(error: Exception, status: int) -> None:
    async def scene() -> None:
        with pytest.raises(Ended) as ended:
            make_shell().fail(error, at={"partition": 3})
        assert ended.value.args == (status,)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("error", "status"), [(KeyError("a bug"), EXIT_SOFTWARE), (BrokerError("away"), EXIT_TEMPFAIL)]
)
def test_a_process_whose_views_stand_still_ends(monkeypatch: pytest.MonkeyPatch, error: Exception, status: int) -> None:
    async def scene() -> None:
        shell = make_shell()
        watching = asyncio.create_task(watches.watch_crash(shell))
        await asyncio.sleep(0.3)
        assert not watching.done()
        monkeypatch.setattr(Views, "ended", error)
        with pytest.raises(Ended) as ended:
            await asyncio.wait_for(watching, 5)
        assert ended.value.args == (status,)

    asyncio.run(scene())


def test_who_slept_past_the_session_waits_for_a_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        shell = make_shell()
        thread = SimpleNamespace(last_heartbeat=time.monotonic())
        monkeypatch.setattr(StageRunner, "thread", property(lambda self: thread))
        shell._generation = shell.app.consumer_generation_id = 3
        tenure: Any = SimpleNamespace(closed=False)
        assert await shell.may_publish(tenure)

        thread.last_heartbeat -= 6.1
        asking = asyncio.create_task(shell.may_publish(tenure))
        await asyncio.sleep(0.05)
        assert not asking.done()
        thread.last_heartbeat = time.monotonic()
        assert await asyncio.wait_for(asking, 5)

        shell.app.consumer_generation_id = 4  # a rebalance has begun, and the tenure is not closed yet
        asking = asyncio.create_task(shell.may_publish(tenure))
        await asyncio.sleep(0.05)
        assert not asking.done()
        tenure.closed = True
        assert not await asyncio.wait_for(asking, 5)

    asyncio.run(scene())
