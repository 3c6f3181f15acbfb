"""The reader of the account replaces a stalled consumer, so that no record counts as lost."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer

from tamiyo.evaluation.common import account_reader
from tamiyo.evaluation.common.account import Ledger
from tamiyo.evaluation.common.account_reader import Reader
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import DECISIONS
from tamiyo.streams.admin.topics import Topics
from tests.support.kafka_log import KafkaLog
from tests.support.runs import decision


class Stalled:
    """A consumer whose fetcher has stalled."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def poll(self, timeout: float) -> None:
        time.sleep(timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)


def test_a_stalled_consumer_is_replaced_where_it_stopped(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account_reader, "CHECK_S", 0.3)
    Topics(kafka, names).touch()
    ledger = Ledger()
    reader = Reader(kafka, names, ledger)

    def read_until(done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not done() and time.monotonic() < deadline:
            list(reader.poll(0.05))

    kafka_log.publish(DECISIONS, [decision("first")])
    read_until(lambda: ledger.verdict().decisions == 1)
    stalled = Stalled(reader._reader.consumer)
    reader._reader.consumer = stalled  # type: ignore[assignment]
    kafka_log.publish(DECISIONS, [decision("second")])
    read_until(lambda: ledger.verdict().decisions == 2)
    reader.close()

    assert reader._reader.consumer is not stalled
    assert (ledger.verdict().decisions, ledger.verdict().repeated, reader.counts["stalled"]) == (2, 0, 1)
