"""The soak's reader is not what loses something."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer

from tamiyo.evaluation.common import account_reader as soak_reader
from tamiyo.evaluation.common.account import Ledger
from tamiyo.evaluation.common.account_reader import Reader
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import DECISIONS
from tamiyo.streams.admin.topics import Topics
from tests.support.kafka_log import KafkaLog
from tests.support.runs import decision


class Deaf:
    """A consumer whose fetcher has stalled."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def consume(self, count: int, timeout: float) -> list[Any]:
        return []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)


def test_it_goes_on_where_its_consumer_has_stalled(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak_reader, "LOOK_S", 0.3)
    Topics(kafka, names).touch()
    ledger = Ledger()
    reader = Reader(kafka, names, ledger)

    def read_until(done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not done() and time.monotonic() < deadline:
            list(reader.poll(0.05))

    kafka_log.say(DECISIONS, [decision("first")])
    read_until(lambda: ledger.verdict().decisions == 1)
    deaf = Deaf(reader._consumer)
    reader._consumer = deaf  # type: ignore[assignment]
    kafka_log.say(DECISIONS, [decision("second")])
    read_until(lambda: ledger.verdict().decisions == 2)
    reader.close()

    assert reader._consumer is not deaf
    assert (ledger.verdict().decisions, ledger.verdict().repeated, reader.counts["stalled"]) == (2, 0, 1)
