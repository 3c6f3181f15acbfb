"""On a real Kafka: a broker that goes down and comes back, and a worker that is stopped in the middle of its work."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tamiyo.host._client.receiver import KafkaReceiver
from tamiyo.host._client.transport import InboundRecord
from tamiyo.schemas.codec import encode
from tamiyo.schemas.kafka import PRODUCER, KafkaSettings, TopicNames
from tamiyo.schemas.topics import DECISIONS
from tamiyo.streams.admin.brokers import LocalKafka
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.settings import WorkerSettings
from tests.support.kafka_log import KafkaLog, LoggedMessage
from tests.support.pairs import NUMBERS, SUMS, number
from tests.support.runs import RUN, decision
from tests.support.workers import ORDINARY, ROOT, RUNS, TOPICS, Process, enough, expected, numbers, sums

pytestmark = [pytest.mark.kafka, pytest.mark.flow]

OUTAGE_S = 8.0  # beyond the session timeout of 6 s: the group falls apart meanwhile
STOP_S = 10.0


@pytest.fixture
def own_kafka() -> Iterator[LocalKafka]:
    """A broker for one test, which kills it."""
    home = os.environ.get("KAFKA_HOME")
    if not home:
        pytest.skip("needs a broker that it may kill: KAFKA_HOME is not set")
    with LocalKafka(home) as broker:
        yield broker


def outage(broker: LocalKafka, down_s: float = OUTAGE_S) -> None:
    broker.kill()
    time.sleep(down_s)
    broker.start()


@pytest.mark.timeout(240)
def test_stages_wait_for_a_broker_that_is_down_and_go_on(
    own_kafka: LocalKafka,
    names: TopicNames,
    open_log: Callable[[KafkaSettings], KafkaLog],
    start: Callable[..., Process],
) -> None:
    kafka = KafkaSettings(bootstrap_servers=own_kafka.bootstrap_servers)
    Topics(kafka, names, TOPICS).create(partitions=2)
    log = open_log(kafka)
    worker = start(kafka).wait_until_ready(2)
    log.publish(NUMBERS, numbers(0, 51))
    log.wait_for(SUMS.name, enough(50))  # in the middle of its work
    outage(own_kafka)
    log.publish(NUMBERS, numbers(51, 101))
    messages = log.wait_for(SUMS.name, enough(400), timeout_s=90)
    assert sums(messages) == expected(101)
    assert worker.process.poll() is None, worker.log.read_text()
    worker.wait_until_ready(2)
    assert worker.end(signal.SIGTERM) == 0, worker.log.read_text()


@pytest.mark.timeout(120)
def test_a_host_receives_each_decision_once_before_and_after_an_outage(
    own_kafka: LocalKafka, names: TopicNames, open_log: Callable[[KafkaSettings], KafkaLog]
) -> None:
    kafka = KafkaSettings(bootstrap_servers=own_kafka.bootstrap_servers)
    Topics(kafka, names).create(partitions=4)
    log = open_log(kafka)
    receiver = KafkaReceiver(RUN, kafka, names, connect_timeout_s=10.0)
    try:
        assert receiver.connected  # though the topics have no leaders yet
        for life in ("first", "second"):
            if life == "second":
                outage(own_kafka, down_s=2.0)
            published = [decision(f"{life}-{number}") for number in range(3)]
            log.publish(DECISIONS, published)
            received: list[InboundRecord] = []
            deadline = time.monotonic() + 30
            while len(received) < len(published) and time.monotonic() < deadline:
                received += receiver.receive()
                time.sleep(0.05)
            assert received == published
        time.sleep(2)  # for a repeated decision to arrive
        assert list(receiver.receive()) == []
    finally:
        receiver.close()


@pytest.mark.timeout(300)
def test_a_worker_whose_delivery_timed_out_is_restarted_by_its_supervisor(
    own_kafka: LocalKafka, names: TopicNames, open_log: Callable[[KafkaSettings], KafkaLog], tmp_path: Path
) -> None:
    kafka = KafkaSettings(bootstrap_servers=own_kafka.bootstrap_servers)
    Topics(kafka, names, TOPICS).create(partitions=2)
    log = open_log(kafka)
    environment = {
        **os.environ,
        "TAMIYO_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "TAMIYO_TOPIC_PREFIX": names.prefix,
        "TAMIYO_WORKER_DELIVERY_TIMEOUT_S": "2",  # shorter than the outage
        "TAMIYO_WORKER_STARTUP_TIMEOUT_S": "2",  # and so is its timeout at a start
        "TAMIYO_WORKER_STATE_DIR": str(tmp_path),
        "TAMIYO_SUPERVISOR_FIRST_BACKOFF_S": "0.2",
        "TAMIYO_SUPERVISOR_LAST_BACKOFF_S": "2",
    }
    code = "import runpy; runpy.run_module('tests.support.pairs', run_name='__main__')"
    output = tmp_path / "log"
    with output.open("wb") as file:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "tests.streams.process.supervised", code],
            cwd=ROOT, env=environment, stdout=file, stderr=file,
        )  # fmt: skip
    try:
        log.publish(NUMBERS, numbers(0, 51))
        log.wait_for(SUMS.name, enough(200))
        # Some records are on their way to the broker when it goes down.
        producer = Producer(kafka.librdkafka(**PRODUCER))
        for record in numbers(51, 2001):
            producer.produce(names.full(NUMBERS.name), encode(record), record.run_id.encode())
            producer.poll(0)
        log.wait_for(SUMS.name, enough(300))
        outage(own_kafka)
        assert producer.flush(60) == 0
        messages = log.wait_for(SUMS.name, enough(8 * 1000), timeout_s=120)
        assert sums(messages) == expected(2001)
        assert supervisor.poll() is None, output.read_text()
        supervisor.terminate()
        assert supervisor.wait(20) == 0, output.read_text()
    finally:
        supervisor.kill()
        supervisor.wait()


class Load(threading.Thread):
    """Produces pairs of every run, `per_s` records a second, until it is stopped."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames, per_s: int) -> None:
        super().__init__(daemon=True)
        self._producer = Producer(kafka.librdkafka(**PRODUCER))
        self._topic = names.full(NUMBERS.name)
        self._pause = len(RUNS) * 2 / per_s
        self._stopped = threading.Event()
        self.steps = 0

    def run(self) -> None:
        while not self._stopped.wait(self._pause):
            for run in RUNS:
                for step in (self.steps, self.steps + 1):
                    self._producer.produce(self._topic, encode(number(run, step, step % ORDINARY)), run.encode())
            self._producer.poll(0)
            self.steps += 2

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        assert self._producer.flush(20) == 0


def reached(messages: list[LoggedMessage]) -> dict[int, int]:
    """Return by partition how far the numbers had been read, by the headers of outputs."""
    found: dict[int, int] = {}
    for each in messages:
        positions = dict(part.split("=") for part in each.headers["tamiyo-positions"].split(","))
        found[each.partition] = max(found.get(each.partition, 0), int(positions[NUMBERS.name]))
    return found


@pytest.mark.timeout(240)
def test_a_stop_under_load_drains_and_commits_and_the_next_worker_repeats_no_batch(
    real_kafka: str, names: TopicNames, open_log: Callable[[KafkaSettings], KafkaLog], start: Callable[..., Process]
) -> None:
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    Topics(kafka, names, TOPICS).create(partitions=2)
    log = open_log(kafka)
    # The default, except for the interval of commits: a stop has to commit by itself.
    worker = start(kafka, commit_interval_s=60).wait_until_ready(2)
    load = Load(kafka, names, per_s=1000)
    load.start()
    log.wait_for(SUMS.name, enough(1000))
    began = time.monotonic()
    assert worker.end(signal.SIGTERM) == 0, worker.log.read_text()
    took = time.monotonic() - began
    assert took < STOP_S
    committed = log.committed("tamiyo_pairs", NUMBERS.name)
    before = log.read(SUMS.name)
    again = {partition: offset - committed[partition] for partition, offset in reached(before).items()}
    # The first of a pair is open until its second arrives: one record per run that shares the partition.
    batch = WorkerSettings().max_poll_records
    assert sum(again.values()) <= batch + len(RUNS), again

    second = start(kafka)
    time.sleep(1)
    load.stop()
    messages = log.wait_for(SUMS.name, enough(len(RUNS) * load.steps // 2), timeout_s=60)
    assert sums(messages) == expected(load.steps + 1)
    second.wait_until_ready(2)
    # It received what was left, and what it read again.
    left = len(RUNS) * load.steps - sum(committed.values())
    assert second.metric("tamiyo_records_received_total") == left
    assert second.metric("tamiyo_records_repeated_total") <= batch
    print(f"stopped in {took:.1f} s; read again {sum(again.values())} of {sum(reached(before).values())} records")
    assert second.end(signal.SIGTERM) == 0
