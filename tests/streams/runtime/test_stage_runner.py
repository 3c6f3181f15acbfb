"""When a runner ends its process, and when it does not."""

import asyncio

import pytest
from faust.types import TP

from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.process.exit_codes import EXIT_SOFTWARE, EXIT_TEMPFAIL
from tamiyo.streams.runtime import liveness
from tamiyo.streams.runtime.views import Views
from tests.streams.runtime.runners import make_runner
from tests.support.pairs import NUMBERS
from tests.support.workers import TOPICS


class Ended(Exception):
    """Instead of the end of the process."""


def end(status: int) -> None:
    raise Ended(status)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ZeroDivisionError("a bug"), EXIT_SOFTWARE),
        (BrokerError("away"), EXIT_TEMPFAIL),
        (TimeoutError(), EXIT_TEMPFAIL),
    ],
)
def test_a_bug_and_a_failed_broker_end_differently(error: Exception, status: int) -> None:
    async def scene() -> None:
        with pytest.raises(Ended) as ended:
            make_runner(end_process=end).fail(error, {"partition": 3})
        assert ended.value.args == (status,)

    asyncio.run(scene())


def test_a_rebalance_while_a_worker_stops_ends_nothing(kafka: KafkaSettings, names: TopicNames) -> None:
    Topics(kafka, names, TOPICS).create(partitions=4)

    async def scene() -> None:
        ended: list[int] = []
        runner = make_runner(end_process=ended.append, kafka=kafka, names=names)
        await runner.views.start()
        await runner.start()
        await runner.stop()
        # As on a busy machine: by the time that the partitions are restored, the consumer's thread has ended.
        await runner._assigned(None, {TP(names.full(NUMBERS.name), 0)})
        await asyncio.gather(*(each for each in asyncio.all_tasks() if each.get_name() == "pairs-prepare"))
        await runner.views.stop()
        assert ended == []

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("error", "status"), [(KeyError("a bug"), EXIT_SOFTWARE), (BrokerError("away"), EXIT_TEMPFAIL)]
)
def test_a_process_whose_views_are_not_read_ends(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    async def scene() -> None:
        checking = asyncio.create_task(liveness.check_crash(make_runner(end_process=end)))
        await asyncio.sleep(0.3)
        assert not checking.done()
        monkeypatch.setattr(Views, "ended", error)
        with pytest.raises(Ended) as ended:
            await asyncio.wait_for(checking, 5)
        assert ended.value.args == (status,)

    asyncio.run(scene())
