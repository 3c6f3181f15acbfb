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


@pytest.mark.flow
def test_workers_stop_while_their_group_waits_for_a_member_that_does_not_answer(
    real_kafka: str, names: TopicNames, start: Callable[..., Process]
) -> None:
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    Topics(kafka, names, TOPICS).create(partitions=4)
    first = start(kafka, shutdown_timeout_s=30).wait_until_ready(4)
    hung = member(kafka, names)
    poll_until(hung, lambda: bool(hung.assignment()))
    second = start(kafka, shutdown_timeout_s=30)  # it joins, the first one joins again, and both wait for the hung one
    deadline = time.monotonic() + 30
    while first.get("/readyz").json()["stages"]["pairs"]["assigned"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    for worker in (first, second):
        began = time.monotonic()
        assert worker.end(signal.SIGTERM) == 0, worker.log.read_text()
        assert time.monotonic() - began < 10
        assert "error" not in worker.log.read_text()
    poll_until(hung, lambda: len(hung.assignment()) == 8)  # both have left
    hung.close()


def poll_until(one: Consumer, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        one.poll(0.05)


def join_and_leave(kafka: KafkaSettings, names: TopicNames, seconds: float) -> None:
    joining = member(kafka, names)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        joining.poll(0.05)
    joining.close()


def member(kafka: KafkaSettings, names: TopicNames) -> Consumer:
    """Return a foreign member of the worker's group."""
    joining = Consumer(
        kafka.librdkafka(**{
            "group.id": names.full("tamiyo_pairs"),
            "enable.auto.commit": False,
            "partition.assignment.strategy": "range",
            "session.timeout.ms": 6_000,
            "log_level": 0,
        })
    )  # fmt: skip
    # With a callback of its own, a member answers its group only while it is polled.
    joining.subscribe([names.full(topic.name) for topic in (NUMBERS, LETTERS)], on_revoke=lambda *_: None)
    return joining
