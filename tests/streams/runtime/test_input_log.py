"""Gaps in the offsets that the consumer hands on, and the backlog."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from tamiyo.schemas.kafka import TopicNames
from tamiyo.streams.runtime.input_log import InputLog


class Reader:
    """An OutputLogReader that finds one message."""

    def __init__(self, found: int | None) -> None:
        self.found = found

    async def __aenter__(self) -> "Reader":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def first_after(self, topic: str, partition: int, offset: int) -> int | None:
        assert (topic, partition) == ("p.numbers", 2)
        return self.found


def input_log(thread: Any, found: int | None = None) -> InputLog:
    reader: Any = Reader(found)
    app: Any = SimpleNamespace(consumer_thread=thread)
    return InputLog(app, TopicNames(prefix="p."), 2, lambda: reader)


@pytest.mark.parametrize(
    ("first", "committed", "done"),
    [
        (None, 5, True),
        (7, 5, True),
        (5, 7, True),
        (5, 8, True),
        (5, 6, False),
        (5, 5, False),
        (5, None, False),
        (6, 6, False),  # the gap begins with a marker, and then has a record
        (6, 7, True),
    ],
)
def test_nothing_was_skipped_if_a_gap_is_empty_or_its_messages_were_acknowledged(
    first: int | None, committed: int | None, done: bool
) -> None:
    async def committed_of(partitions: set[TP]) -> dict[TP, int | None]:
        assert partitions == {TP("p.numbers", 2)}
        return dict.fromkeys(partitions, committed)

    log = input_log(SimpleNamespace(committed=committed_of), first)
    assert asyncio.run(log.first_skipped("numbers", 5, 7)) == (None if done else first)


def test_the_consumer_seeks_the_partition_of_the_installation() -> None:
    sought: list[tuple[TP, int]] = []

    async def seek(tp: TP, offset: int) -> None:
        sought.append((tp, offset))

    app: Any = SimpleNamespace(consumer=SimpleNamespace(seek=seek))
    reader: Any = Reader(None)
    asyncio.run(InputLog(app, TopicNames(prefix="p."), 2, lambda: reader).seek("numbers", 5))
    assert sought == [(TP("p.numbers", 2), 5)]


def test_the_backlog_is_what_the_broker_has_beyond_the_positions() -> None:
    highwaters = {TP("p.a", 2): 30, TP("p.b", 2): 3, TP("p.c", 2): None}

    def highwater(tp: TP) -> int | None:
        return highwaters[tp]

    log = input_log(SimpleNamespace(highwater=highwater))
    # 20 of a, none of b (the highwater is old), one assumed of c, none of d (its partition is being lost).
    assert log.backlog({"a": 10, "b": 5, "c": 0, "d": 0}) == 21
