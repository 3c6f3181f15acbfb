"""Calls of a stage: what it is fed, and what is rejected before it."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import BrokerError
from tamiyo.streams.headers import END_MARKER
from tamiyo.streams.runtime.input_buffer import Undecoded
from tamiyo.streams.runtime.poison import PoisonTracker
from tamiyo.streams.runtime.stage_call import StageCall
from tamiyo.streams.stages.base import Incoming, Output, Reject
from tests.streams.runtime.harness import PARTITION, pair_stage, record_at
from tests.support.pairs import NUMBERS, PairStage, number

BUG = ZeroDivisionError("a bug")


class EchoStage(PairStage):
    """Returns one reject for each record, and keeps what it was fed, in which thread, and with which backlog."""

    offload: ClassVar[bool] = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.fed: list[int] = []
        self.backlogs: list[int | None] = []
        self.threads: list[int] = []
        self.error: BaseException | None = None

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        self.fed += [each.record.hits for each in batch]
        self.tick(0)
        if self.error is not None:
            raise self.error
        return [Reject(each, "echo") for each in batch]

    def tick(self, now_ms: int) -> Sequence[Output | Reject]:
        self.backlogs.append(self.backlog)
        self.threads.append(threading.get_ident())
        return ()


class OffloadedStage(EchoStage):
    offload: ClassVar[bool] = True


def stage_of(kind: type[EchoStage] = EchoStage) -> EchoStage:
    stage = pair_stage(kind)
    assert isinstance(stage, EchoStage)
    return stage


def undecoded(offset: int, value: bytes | None) -> Undecoded:
    return NUMBERS.name, record_at(offset, value)


def good(*offsets: int) -> list[Undecoded]:
    return [undecoded(offset, encode(number("run", 0, offset))) for offset in offsets]


def call(stage: EchoStage, poison: PoisonTracker | None = None, **more: Any) -> StageCall:
    poison = PoisonTracker() if poison is None else poison  # an empty one is falsy
    return StageCall(stage, PARTITION, poison=poison, **{"backlog": None, **more})


def test_rejects_come_first_and_the_rest_is_fed_in_order() -> None:
    stage = stage_of()
    tracker = PoisonTracker(attempts=1)
    tracker.record_failure([Incoming(NUMBERS.name, PARTITION, 5, 0, None)], BUG)
    batch = [*good(3), undecoded(4, b"rubbish"), *good(5), undecoded(6, None), *good(7, 8)]
    outputs = asyncio.run(call(stage, tracker, dead_lettered={(NUMBERS.name, 7)}).feed(batch))
    rejects = [each for each in outputs if isinstance(each, Reject)]
    assert rejects == outputs
    assert [(each.source.offset, each.poison, each.reason.split(":")[0]) for each in rejects] == [
        (4, False, "DecodeError"),
        (5, True, "poison"),
        (6, False, "DecodeError"),
        (7, True, "poison"),
        (3, False, "echo"),
        (8, False, "echo"),
    ]
    assert stage.fed == [3, 8]
    assert rejects[0].source.raw == b"rubbish"
    assert "no value" in rejects[2].reason


def test_a_record_keeps_its_place_and_its_bytes() -> None:
    stage = stage_of()
    (echo,) = asyncio.run(call(stage).feed(good(3)))
    value = encode(number("run", 0, 3))
    assert echo.source == Incoming(NUMBERS.name, PARTITION, 3, 1500, number("run", 0, 3), value, b"run")
    (reject,) = asyncio.run(call(stage).feed([undecoded(4, None)]))
    headers = tuple(END_MARKER)
    assert reject.source == Incoming(NUMBERS.name, PARTITION, 4, 1500, None, b"", b"run", headers)


def test_a_record_keeps_its_headers() -> None:
    headers = [("traceparent", b"00"), ("empty", None)]
    for value in (encode(number("run", 0, 3)), b"rubbish"):
        topic, record = undecoded(3, value)
        record.headers = headers
        (reject,) = asyncio.run(call(stage_of()).feed([(topic, record)]))
        assert reject.source.headers == tuple(headers)


def test_a_batch_without_a_record_does_not_call_the_stage() -> None:
    stage = stage_of()
    assert len(asyncio.run(call(stage).feed([undecoded(0, b"rubbish")]))) == 1
    assert asyncio.run(call(stage).feed([])) == []
    assert stage.threads == []


@pytest.mark.parametrize(
    ("error", "recorded"),
    [(BUG, True), (OSError("disk full"), False), (BrokerError("away"), False), (MemoryError(), False)],
)
def test_an_error_is_recorded_against_the_records_unless_the_environment_failed(
    error: Exception, recorded: bool
) -> None:
    stage, tracker = stage_of(), PoisonTracker(attempts=1)
    stage.error = error
    with pytest.raises(type(error)):
        asyncio.run(call(stage, tracker).feed([*good(3), undecoded(4, b"rubbish")]))
    # A record that was not fed is not suspected.
    assert [tracker.isolate(NUMBERS.name, offset) for offset in (3, 4)] == [recorded, False]
    assert (tracker.is_poison(NUMBERS.name, 3) is not None) is recorded


@pytest.mark.parametrize("kind", [EchoStage, OffloadedStage])
def test_a_stage_computes_in_a_thread_only_if_it_wants_that(kind: type[EchoStage]) -> None:
    async def scene() -> EchoStage:
        stage = stage_of(kind)
        stage_call = call(stage)
        await stage_call.feed(good(1))
        await stage_call.tick()
        return stage

    here = threading.get_ident()
    assert [each == here for each in asyncio.run(scene()).threads] == [not kind.offload] * 2


def test_the_backlog_is_updated_before_every_call_and_left_alone_without_a_source() -> None:
    async def scene(**more: Any) -> list[int | None]:
        stage = stage_of()
        stage_call = call(stage, **more)
        await stage_call.feed(good(1))
        await stage_call.tick()
        return stage.backlogs

    counts = iter((7, 8))
    assert asyncio.run(scene(backlog=lambda: next(counts))) == [7, 8]
    assert asyncio.run(scene()) == [None, None]
