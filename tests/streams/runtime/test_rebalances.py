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
def test_a_worker_stops_while_its_group_waits_for_a_member_that_does_not_answer(
    real_kafka: str, names: TopicNames, start: Callable[..., Process]
) -> None:
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    Topics(kafka, names, TOPICS).create(partitions=4)
    worker = start(kafka, shutdown_timeout_s=30).wait_until_ready(4)
    hung = member(kafka, names)
    poll_until(hung, lambda: bool(hung.assignment()))
    other = member(kafka, names)  # the worker joins again, and waits for the hung one
    poll_until(other, lambda: not worker.get("/readyz").json()["stages"]["pairs"]["assigned"], also=1.0)
    began = time.monotonic()
    assert worker.end(signal.SIGTERM) == 0, worker.log.read_text()
    assert time.monotonic() - began < 10
    assert "error" not in worker.log.read_text()
    # The worker has left: the group waits for the hung member alone.
    poll_until(hung, lambda: len(hung.assignment()) + len(other.assignment()) == 8, with_=other)
    for each in (hung, other):
        each.close()


def poll_until(one: Consumer, condition: Callable[[], bool], also: float = 0.0, with_: Consumer | None = None) -> None:
    """Poll a member until a condition holds, and for some seconds more."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        one.poll(0.05)
        if with_ is not None:
            with_.poll(0.05)
    until = time.monotonic() + also
    while time.monotonic() < until:
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
