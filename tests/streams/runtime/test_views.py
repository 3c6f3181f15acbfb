"""Compacted topics as views."""

import asyncio
from collections.abc import Callable

import pytest

from tamiyo.schemas.client.compacted import REMOVED_S
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import BrokerError, DecodeError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.runtime import views as views_module
from tamiyo.streams.runtime.views import UNPACKED_S, TopicView, Views
from tests.support.kafka_log import KafkaLog
from tests.support.pairs import FACTORS, LETTERS, number


def test_the_newest_record_is_kept_and_an_empty_message_removes_its_key() -> None:
    view: TopicView[object] = TopicView(FACTORS)  # type: ignore[type-var]
    view.apply(b"a", encode(number("a", 0, 1)))
    view.apply(b"b", encode(number("b", 0, 2)))
    view.apply(b"a", encode(number("a", 0, 3)))
    assert {key: record.hits for key, record in view.items()} == {"a": 3, "b": 2}  # type: ignore[attr-defined]
    view.apply(b"b", None)
    view.apply(b"never there", None)
    assert view.get("b") is None
    with pytest.raises(DecodeError):
        view.apply(b"a", b"rubbish")
    assert len(view) == 1


def test_an_older_record_of_another_partition_does_not_come_back() -> None:
    view: TopicView[object] = TopicView(FACTORS)  # type: ignore[type-var]
    new, old = encode(number("a", 0, 2)), encode(number("a", 0, 1))
    view.apply(b"a", new, partition=5, timestamp_ms=2_000)
    assert view.get("a") == number("a", 0, 2)
    view.apply(b"a", old, partition=1, timestamp_ms=1_000)
    assert view.get("a") == number("a", 0, 2)
    view.apply(b"a", None, partition=1, timestamp_ms=1_000)
    assert view.get("a") == number("a", 0, 2)
    view.apply(b"a", None, partition=1, timestamp_ms=3_000)  # of somebody who knows the old partition only
    assert view.get("a") is None
    assert len(view) == 0


def test_removed_runs_leave_nothing_in_memory() -> None:
    now = 0.0
    view: TopicView[object] = TopicView(FACTORS, clock=lambda: now)  # type: ignore[type-var]
    for index in range(100):
        view.apply(b"run-%d" % index, encode(number("run", 0, 1)), timestamp_ms=1_000)
        view.get(f"run-{index}")
        view.apply(b"run-%d" % index, None, timestamp_ms=2_000)
    now = REMOVED_S + 1
    view.forget_removed()
    assert len(view) == 0
    assert list(view.items()) == []
    assert not list(view._packed)
    assert not view._unpacked


def test_a_record_not_read_lately_is_packed_and_unpacks_to_the_same() -> None:
    now = 0.0
    view: TopicView[object] = TopicView(FACTORS, clock=lambda: now)  # type: ignore[type-var]
    view.apply(b"a", encode(number("a", 0, 1)))
    view.apply(b"b", encode(number("b", 0, 2)))
    first = view.get("a")
    assert view.get("a") is first
    now = UNPACKED_S + 1
    assert view.get("b") == number("b", 0, 2)
    again = view.get("a")
    assert again is not first
    assert again == first == number("a", 0, 1)


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), asyncio.CancelledError()])
def test_a_reader_that_has_ended_is_reported(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    async def read(views: Views) -> None:
        await asyncio.sleep(0)
        raise error

    async def scene() -> None:
        views = Views((FACTORS,), KafkaSettings(), TopicNames(), fetch_wait_ms=10)
        assert views.ended is None
        await views.start()
        assert views.ended is None
        await until(lambda: views.ended is not None)
        assert views.ended is error or isinstance(views.ended, BrokerError)

    monkeypatch.setattr(Views, "_read", read)
    asyncio.run(scene())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_views_are_complete_before_they_are_ready_and_then_follow(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog
) -> None:
    Topics(kafka, names, (FACTORS, LETTERS)).touch()
    kafka_log.publish(FACTORS, [number(f"run-{index}", 0, index) for index in range(200)])
    kafka_log.publish_bytes(FACTORS, [(b"run-0", b"rubbish")])

    async def read() -> None:
        views = Views((FACTORS, LETTERS), kafka, names, fetch_wait_ms=10)
        await views.start()
        await views.wait(20)
        factors = views.by_name[FACTORS.name]
        assert len(factors) == 200
        assert len(views.by_name[LETTERS.name]) == 0
        kafka_log.publish(FACTORS, [number("run-7", 0, 70)])
        await until(lambda: factors.get("run-7").hits == 70)  # type: ignore[union-attr]
        await views.stop()

    asyncio.run(read())


@pytest.mark.kafka
def test_views_read_partitions_that_are_added_later(
    real_kafka: str,
    names: TopicNames,
    open_log: Callable[[KafkaSettings], KafkaLog],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(views_module, "METADATA_MAX_AGE_MS", 200)
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    topics = Topics(kafka, names, (FACTORS,))
    topics.create(partitions=1)
    log = open_log(kafka)
    runs = [f"run-{index}" for index in range(20)]
    log.publish(FACTORS, [number(run, 0, 1) for run in runs])

    async def read() -> None:
        views = Views((FACTORS,), kafka, names, fetch_wait_ms=10)
        await views.start()
        await views.wait(20)
        factors = views.by_name[FACTORS.name]
        topics.grow(5)
        log.publish(FACTORS, [number(run, 0, 2) for run in runs])
        await until(lambda: {record.hits for _, record in factors.items()} == {2})
        assert len(factors) == 20
        await views.stop()
        # A fresh reader gets the partitions in any order: the old records on partition 0 stay old.
        again = Views((FACTORS,), kafka, names, fetch_wait_ms=10)
        await again.start()
        await again.wait(20)
        assert {record.hits for _, record in again.by_name[FACTORS.name].items()} == {2}
        await again.stop()

    asyncio.run(read())


def test_views_that_cannot_be_read_raise(names: TopicNames) -> None:
    async def read() -> None:
        views = Views((FACTORS,), KafkaSettings(bootstrap_servers="127.0.0.1:1"), names, fetch_wait_ms=10)
        await views.start()
        try:
            with pytest.raises(BrokerError, match=r"test\.factors.* within 0 s"):
                await views.wait(0.3)
        finally:
            await views.stop()

    asyncio.run(read())
