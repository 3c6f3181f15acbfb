"""Inputs are read evenly in time."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Producer
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP

from tamiyo.schemas.kafka import PRODUCER, KafkaSettings, TopicNames
from tamiyo.streams.runtime.faust.app import create_app
from tamiyo.streams.runtime.faust.batch_handover import BatchSchema
from tamiyo.streams.runtime.faust.timestamp_sync import SLACK_MS, TimestampSynchronization, TimestampSynchronized
from tamiyo.streams.settings import WorkerSettings

A0, B0, C0, A1, B1 = (TP(name, int(name[1])) for name in ("a0", "b0", "c0", "a1", "b1"))
ALL = {A0, B0, C0, A1, B1}


def read_to(**reached_ms: int) -> TimestampSynchronization:
    synchronization = TimestampSynchronization()
    synchronization.record(
        {TP(name, int(name[1])): [SimpleNamespace(timestamp=each)] for name, each in reached_ms.items()}
    )
    return synchronization


@pytest.mark.parametrize(
    ("reached", "waiting", "behind"),
    [
        ({}, ALL, ALL),
        ({"a0": 5_000, "b0": 5_000, "c0": 0}, {A0, B0}, ALL),  # c0 is read to its end and holds nothing up
        ({"a0": 5_000, "b0": 5_000, "c0": 0}, {A0, B0, C0}, {C0, A1, B1}),
        ({"a0": SLACK_MS, "b0": SLACK_MS + 1, "c0": 0}, {C0}, {A0, C0, A1, B1}),
        ({"a0": 9_000, "c0": 9_000}, {A0, B0}, {B0, A1, B1}),  # nothing of b0 has been read yet
        ({"a0": 9_000, "b0": 0, "c0": 9_000, "a1": 0, "b1": 9_000}, ALL, {B0, A1}),
        ({"a0": 9_000, "b0": 0, "c0": 9_000, "a1": 0, "b1": 9_000}, set(), ALL),
        ({"a0": -1, "b0": -1, "c0": -1}, {A0, B0, C0}, ALL),  # a log without times
    ],
)
def test_inputs_behind_are_read_first(reached: dict[str, int], waiting: set[TP], behind: set[TP]) -> None:
    assert read_to(**reached).behind(ALL, waiting.__contains__) == behind


def test_a_record_from_the_future_delays_its_input_until_the_next_is_read() -> None:
    synchronization = read_to(a0=10**15, b0=5_000)
    assert synchronization.behind({A0, B0}, {A0, B0}.__contains__) == {B0}
    synchronization.record({A0: [SimpleNamespace(timestamp=10**16), SimpleNamespace(timestamp=5_001)], B0: []})
    assert synchronization.behind({A0, B0}, {A0, B0}.__contains__) == {A0, B0}
    synchronization.clear()
    assert synchronization.behind({A0, B0}, {A0, B0}.__contains__) == {A0, B0}


def test_an_input_that_gives_nothing_blocks_the_others_for_one_fetch_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    fetches: list[tuple[set[TP], float]] = []

    async def fetch(self: Any, consumer: Any, tps: set[TP], timeout: float, max_records: int) -> dict[TP, list[Any]]:
        fetches.append((tps, timeout))
        return {A0: [SimpleNamespace(timestamp=20_000)]} if A0 in tps else {}

    monkeypatch.setattr(AIOKafkaConsumerThread, "_fetch_records", fetch)
    monkeypatch.setattr(TimestampSynchronized, "_has_backlog", staticmethod(lambda consumer, tp: True))
    thread = TimestampSynchronized.__new__(TimestampSynchronized)
    thread._synchronization = read_to(a0=10_000, b0=0)

    assert asyncio.run(thread._fetch_records(None, {A0, B0}, 1.0, 100)).keys() == {A0}
    assert fetches == [({B0}, 1.0), ({A0, B0}, 0)]


def test_small_records_are_not_read_hours_ahead_of_large_ones(kafka: KafkaSettings, names: TopicNames) -> None:
    apart_ms, count, at_once = 10_000, 2_000, 50
    small, large = names.full("small"), names.full("large")
    producer = Producer(kafka.librdkafka(**PRODUCER))
    for place in range(count):
        for topic, size in ((small, 10), (large, 1_000)):
            producer.produce(topic, b"x" * size, partition=0, timestamp=1_700_000_000_000 + place * apart_ms)
    assert producer.flush(20) == 0

    async def read() -> list[str]:
        order: list[str] = []
        app = create_app(
            names.full("reader"), kafka, WorkerSettings(max_fetch_bytes=100_000, max_poll_records=at_once),
            fetch_wait_ms=10,
        )  # fmt: skip
        every = asyncio.Event()

        async def take(stream: Any) -> None:
            async for event in stream.events():
                order.extend([event.message.topic] * len(event.value))
                if len(order) == 2 * count:
                    every.set()

        app.agent(app.topic(small, large, schema=BatchSchema()), name="take")(take)
        await app.start()
        try:
            await asyncio.wait_for(every.wait(), 60)
        finally:
            await app.stop()
        return order

    ahead = most = 0
    for topic in asyncio.run(read()):
        ahead += 1 if topic == small else -1
        most = max(most, abs(ahead))
    assert most <= 2 * at_once
