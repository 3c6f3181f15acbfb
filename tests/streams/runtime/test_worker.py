"""A stage on a broker: processes, partitions, restarts."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.telemetry import CacheHitRates
from tamiyo.streams.admin.brokers import free_ports
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.headers import restored
from tamiyo.streams.runtime.worker import run_worker
from tamiyo.streams.settings import WorkerSettings
from tests.support.kafka_log import KafkaLog
from tests.support.pairs import FACTORS, NUMBERS, SUMS, number
from tests.support.workers import RUNS, TOPICS, Process, enough, expected, numbers, sums


def becomes(worker: Process, value: float, name: str, **labels: str) -> bool:
    """Return whether a gauge has the value within seconds: gauges are set twice a second."""
    deadline = time.monotonic() + 20
    while worker.metric(name, **labels) != value and time.monotonic() < deadline:
        time.sleep(0.1)
    return worker.metric(name, **labels) == value


@pytest.mark.flow
def test_outputs_resume_and_dead_letters(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, start: Callable[..., Process]
) -> None:
    Topics(kafka, names, TOPICS).touch()
    kafka_log.publish(FACTORS, [number("tripled", 0, 3)])
    kafka_log.publish(NUMBERS, [number("tripled", 0, 1), number("tripled", 1, 4)])
    kafka_log.publish(NUMBERS, numbers(0, 5))
    worker = start(kafka)
    messages = kafka_log.wait_for(SUMS.name, enough(17))
    assert sums(messages) == {**expected(5), ("tripled", 0): 15}
    worker.wait_until_ready(4)

    # The partition number stays, headers contain ids and sources, the order of a run is kept.
    where = {each.key: each.partition for each in kafka_log.read(NUMBERS.name)}
    for each in messages:
        assert each.partition == where[each.key]
        topic, partition, _ = each.headers["tamiyo-source"].rsplit(":", 2)
        assert (topic, int(partition)) == (NUMBERS.name, each.partition)
        assert each.headers["tamiyo-stage"] == "pairs"
    for run in RUNS:
        steps = [each.record(CacheHitRates).step for each in messages if each.key == run.encode()]
        assert steps == sorted(steps)

    # Bad bytes, no bytes and a record that the stage rejects are published to the reject topics; the flow goes on.
    kafka_log.publish_bytes(NUMBERS, [(b"run-0", b"not avro"), (b"run-0", None)])
    kafka_log.publish(NUMBERS, [number("run-0", 5, 666)])
    kafka_log.publish(NUMBERS, numbers(5, 7))
    assert sums(kafka_log.wait_for(SUMS.name, enough(25))) == {**expected(7), ("tripled", 0): 15}
    dead = kafka_log.wait_for(NUMBERS.dead_letters, lambda found: len(found) == 2)
    assert dead[0].value == b"not avro"
    assert dead[0].headers["tamiyo-reason"].startswith("DecodeError: expected a CacheHitRates")
    assert int(dead[0].headers["tamiyo-time"]) > 1_600_000_000_000
    (late,) = kafka_log.read(NUMBERS.late)
    assert late.record(CacheHitRates).hits == 666
    assert late.headers["tamiyo-reason"] == "the number of the beast"
    assert worker.metric("tamiyo_records_published_total", stage="pairs", prefix=names.prefix) == 25
    assert worker.metric("tamiyo_records_rejected_total") == 3
    assert becomes(worker, 8, "tamiyo_stage_open_records", stage="pairs")
    assert becomes(worker, 0, "tamiyo_stage_lag_records", stage="pairs")  # what is held open has been read
    assert worker.metric("tamiyo_stage_latency_seconds_count") == 25
    assert worker.get("/healthz").json()["ok"]

    # A graceful stop commits; a restart goes on in the middle of the pairs without repeating itself.
    assert worker.end(signal.SIGTERM) == 0, worker.log.read_text()
    kafka_log.publish(NUMBERS, numbers(7, 10))
    again = start(kafka)
    messages = kafka_log.wait_for(SUMS.name, enough(41))
    assert sums(messages) == {**expected(10), ("tripled", 0): 15}
    again.wait_until_ready(4)
    assert max(Counter(each.identity for each in messages).values()) == 1
    assert len(kafka_log.read(NUMBERS.dead_letters)) == 2
    assert len(kafka_log.read(NUMBERS.late)) == 1
    assert again.end(signal.SIGINT) == 0


@pytest.mark.flow
def test_what_a_hanging_stage_has_not_read_is_its_lag(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, start: Callable[..., Process]
) -> None:
    Topics(kafka, names, TOPICS).touch()
    worker = start(kafka, "offload", max_batch=1).wait_until_ready(4)
    assert becomes(worker, 0, "tamiyo_stage_lag_records", stage="pairs")
    kafka_log.publish(NUMBERS, [number("run-0", 0, 888)])
    assert becomes(worker, 1, "tamiyo_records_received_total")
    kafka_log.publish(NUMBERS, [number("run-0", step, 1) for step in range(1, 40)])
    assert becomes(worker, 39, "tamiyo_stage_lag_records", topic=NUMBERS.name)


@pytest.mark.flow
def test_a_dead_letter_keeps_nulls_and_headers(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, start: Callable[..., Process]
) -> None:
    Topics(kafka, names, TOPICS).touch()
    headers = [("trace", b"1"), ("trace", b"\xff"), ("empty", b""), ("null", None), ("tamiyo-reason", b"mine")]
    producer = AwaitedProducer(kafka)
    for key, value in ((None, None), (b"", b""), (b"k", None), (None, b"x"), (b"k", encode(number("run-0", 5, 666)))):
        producer.produce(names.full(NUMBERS.name), value, key, partition=0, headers=headers)
    producer.flush()
    worker = start(kafka)
    dead = kafka_log.wait_for(NUMBERS.dead_letters, lambda found: len(found) == 4)
    assert [(each.key, each.value) for each in dead] == [(None, None), (b"", b""), (b"k", None), (None, b"x")]
    dead += kafka_log.wait_for(NUMBERS.late, lambda found: len(found) == 1)
    for each in dead:
        assert restored(each.raw_headers) == headers
        assert each.headers["tamiyo-reason"] != "mine"
    assert worker.end(signal.SIGTERM) == 0, worker.log.read_text()


@pytest.mark.flow
def test_two_workers_share_partitions(
    request: pytest.FixtureRequest,
    names: TopicNames,
    open_log: Callable[[KafkaSettings], KafkaLog],
    start: Callable[..., Process],
) -> None:
    if not os.environ.get("KAFKA_HOME"):
        pytest.skip(
            "the embedded coordinator now and then refuses a member that joins while another does: set KAFKA_HOME"
        )
    kafka = KafkaSettings(bootstrap_servers=request.getfixturevalue("real_kafka"))
    Topics(kafka, names, TOPICS).create(partitions=4)
    kafka_log = open_log(kafka)
    first = start(kafka).wait_until_ready(4)
    kafka_log.publish(NUMBERS, numbers(0, 3))
    kafka_log.wait_for(SUMS.name, enough(8))
    second = start(kafka)
    first.wait_until_ready(2)
    second.wait_until_ready(2)
    held = [each.get("/readyz").json()["stages"]["pairs"]["partitions"] for each in (first, second)]
    assert sorted(held[0] + held[1]) == [0, 1, 2, 3]
    kafka_log.publish(NUMBERS, numbers(3, 6))
    messages = kafka_log.wait_for(SUMS.name, enough(24))
    assert sums(messages) == expected(6)
    assert max(Counter(each.identity for each in messages).values()) == 1
    # The one that goes leaves its open pairs to the other.
    kafka_log.publish(NUMBERS, numbers(6, 7))
    assert first.end(signal.SIGTERM) == 0
    kafka_log.publish(NUMBERS, numbers(7, 8))
    messages = kafka_log.wait_for(SUMS.name, enough(32))
    assert sums(messages) == expected(8)


@pytest.mark.flow
def test_a_bug_ends_the_process_with_nothing_acknowledged(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, start: Callable[..., Process]
) -> None:
    Topics(kafka, names, TOPICS).touch()
    kafka_log.publish(NUMBERS, [number("run", 0, 1), number("run", 1, 999), number("run", 2, 2)])
    worker = start(kafka)
    assert worker.process.wait(40) == 70
    assert "ZeroDivisionError: a bug" in worker.log.read_text()
    assert '"stage": "pairs"' in worker.log.read_text()
    assert kafka_log.read(SUMS.name) == []
    assert kafka_log.committed("tamiyo_pairs", NUMBERS.name) == {}


def test_an_unreachable_broker_ends_the_worker() -> None:
    (port,) = free_ports(1)
    kafka = KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}")
    assert run_worker(["intake"], WorkerSettings(startup_timeout_s=0.5), kafka=kafka) == 1


def test_an_unknown_stage_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no stage 'intak'; choose from intake, windows"):
        run_worker(["intak"])


@pytest.mark.kafka
@pytest.mark.flow
def test_kill_and_restart_lose_and_repeat_nothing(
    real_kafka: str, names: TopicNames, open_log: Callable[[KafkaSettings], KafkaLog], start: Callable[..., Process]
) -> None:
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    Topics(kafka, names, TOPICS).create(partitions=2)
    log = open_log(kafka)
    worker = start(kafka).wait_until_ready(2)
    log.publish(NUMBERS, numbers(0, 51))
    for round_ in range(1, 4):
        log.wait_for(SUMS.name, enough(round_ * 100))
        worker.end(signal.SIGKILL)
        log.publish(NUMBERS, numbers(50 * round_ + 1, 50 * round_ + 51))
        worker = start(kafka)
    messages = log.wait_for(SUMS.name, enough(800))
    assert sums(messages) == expected(201)
    assert worker.end(signal.SIGTERM) == 0
