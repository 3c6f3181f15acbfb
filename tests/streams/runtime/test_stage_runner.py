"""How a runner ends its process."""

import asyncio

import pytest

from tamiyo.schemas.errors import BrokerError
from tamiyo.streams.process.exit_codes import EXIT_SOFTWARE, EXIT_TEMPFAIL
from tamiyo.streams.runtime import liveness
from tamiyo.streams.runtime.views import Views
from tests.streams.runtime.runners import make_runner


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
