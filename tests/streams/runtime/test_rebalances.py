"""Rebalances shortly after each other, while nothing is committed and the queues are full."""

import signal
import time
from collections.abc import Callable

import pytest
from confluent_kafka import Consumer

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.telemetry import CacheHitRates
from tamiyo.streams.admin.topics import Topics
from tests.support.kafka_log import KafkaLog
from tests.support.pairs import LETTERS, NUMBERS, SUMS, number
from tests.support.workers import TOPICS, Process, enough

RUNS = 1_600


@pytest.mark.flow
def test_rebalances_over_a_backlog_without_commits_skip_nothing(
    real_kafka: str, names: TopicNames, open_log: Callable[[KafkaSettings], KafkaLog], start: Callable[..., Process]
) -> None:
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    Topics(kafka, names, TOPICS).create(partitions=4)
    kafka_log = open_log(kafka)
    # The first of each pair: the stage holds them all, so that no offset is committed.
    kafka_log.publish(NUMBERS, (number(f"run-{run}", 0, 555) for run in range(RUNS)))
    worker = start(kafka, max_batch=1, max_poll_records=20).wait_until_ready(4)
    for seconds in (0.1, 0.5, 0.1):
        join_and_leave(kafka, names, seconds)
    kafka_log.publish(NUMBERS, (number(f"run-{run}", 1, 1) for run in range(RUNS)))
    found = kafka_log.wait_for(SUMS.name, enough(RUNS), timeout_s=90)
    assert all(each.record(CacheHitRates).hits == 556 for each in found)
    assert worker.end(signal.SIGTERM) == 0, worker.log.read_text()
    assert "skipped" not in worker.log.read_text()


def join_and_leave(kafka: KafkaSettings, names: TopicNames, seconds: float) -> None:
    member = Consumer(
        kafka.librdkafka(**{
            "group.id": names.full("tamiyo_pairs"),
            "enable.auto.commit": False,
            "partition.assignment.strategy": "range",
            "session.timeout.ms": 6_000,
            "log_level": 0,
        })
    )  # fmt: skip
    member.subscribe([names.full(topic.name) for topic in (NUMBERS, LETTERS)])
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        member.poll(0.05)
    member.close()
