"""Whether a partition is still held, before anything is published to it."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

from tamiyo.schemas.kafka import TopicNames
from tamiyo.streams.runtime.output_publisher import OutputPublisher

SESSION_S = 6.0
GENERATION = 3


def make(**more: Any) -> tuple[OutputPublisher, Any]:
    app: Any = SimpleNamespace(
        consumer_thread=SimpleNamespace(last_heartbeat=time.monotonic()),
        rebalancing=False,
        consumer_generation_id=GENERATION,
        **more,
    )
    publisher = OutputPublisher(
        app, TopicNames(prefix="p."), 2, generation=GENERATION, session_timeout_s=SESSION_S
    )  # fmt: skip
    return publisher, app


async def decides(publisher: OutputPublisher) -> bool | None:
    """Return what `may_publish` decides within 0.1 s; None if it waits."""
    try:
        return await asyncio.wait_for(publisher.may_publish(), 0.1)
    except TimeoutError:
        return None


def test_a_process_paused_past_its_session_waits_for_a_heartbeat() -> None:
    async def scene() -> None:
        publisher, app = make()
        assert await decides(publisher) is True
        app.consumer_thread.last_heartbeat -= SESSION_S + 0.1
        assert await decides(publisher) is None
        app.consumer_thread.last_heartbeat = time.monotonic()
        assert await decides(publisher) is True

    asyncio.run(scene())


def test_a_rebalance_is_waited_out_and_a_lost_partition_is_not_published_to() -> None:
    async def scene() -> None:
        publisher, app = make()
        app.rebalancing = True
        assert await decides(publisher) is None
        app.rebalancing = False
        app.consumer_generation_id = GENERATION + 1  # a rebalance is over, and this task is not closed yet
        assert await decides(publisher) is None
        publisher.close()
        assert await decides(publisher) is False

    asyncio.run(scene())


def test_a_message_keeps_its_partition_number_and_gets_the_prefix() -> None:
    sent: list[tuple[Any, ...]] = []

    async def send_records(*arguments: Any) -> str:
        sent.append(arguments)
        return "deliveries"

    publisher, _ = make(producer=SimpleNamespace(send_records=send_records))
    records = [(b"key", b"value", [("h", b"1")])]
    assert asyncio.run(publisher.send("sums", records)) == "deliveries"
    assert sent == [("p.sums", 2, records)]
