"""An installation under its supervisors recovers by itself from broker outages and killed processes."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tamiyo.evaluation.common.installation import Installation
from tamiyo.evaluation.common.live_runs import sampled_steps
from tamiyo.evaluation.common.simulated_runs import TOPICS, Load, topology
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.kafka import PRODUCER
from tamiyo.schemas.topics import CATALOGUE, CHECKPOINTS, DECISIONS, GRAPHS, TOPOLOGY
from tamiyo.streams.admin.brokers import free_ports, kafka_home
from tests.support.kafka_log import KafkaLog

pytestmark = [pytest.mark.kafka, pytest.mark.flow]

LOAD = Load(runs=4, layers=6, frames=300, name="operation")
WINDOW = 50  # steps, as by default
OUTAGE_S = 8.0
STOP_S = 10.0


class Publishing(threading.Thread):
    """Publishes the load over some seconds; while the broker is down, records wait in the producer."""

    def __init__(self, installation: Installation, seconds: float) -> None:
        super().__init__(daemon=True)
        self._names = installation.names
        self._producer = Producer(installation.kafka.librdkafka(**PRODUCER))
        self._pause = seconds / LOAD.frames
        self.left = LOAD.frames
        self.undelivered = -1

    def run(self) -> None:
        for run_id in LOAD.run_ids:
            self._producer.produce(self._names.full(TOPOLOGY.name), encode(topology(run_id, LOAD.layers)), run_id)
        for together in zip(*(sampled_steps(LOAD, run) for run in range(LOAD.runs)), strict=True):
            for record in (record for each in together for record in each):
                full = self._names.full(TOPICS[type(record)].name)
                self._producer.produce(full, encode(record), record.run_id)  # type: ignore[attr-defined]
            self._producer.poll(self._pause)
            time.sleep(self._pause)
            self.left -= 1
        self.undelivered = self._producer.flush(60)


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    home = kafka_home()
    if home is None:
        pytest.skip("KAFKA_HOME is not set, and this test restarts its broker")
    settings = {"TAMIYO_SUPERVISOR_FIRST_BACKOFF_S": "0.5", "TAMIYO_SUPERVISOR_LAST_BACKOFF_S": "3"}
    with Installation(home, tmp_path, settings=settings) as running:
        worker, learner = free_ports(2)
        # With supervisors, which this test is about; `add_worker` starts processes without.
        running.fleet.add("worker", ["worker", "--supervise", "--http-port", str(worker)], worker)
        running.fleet.add("learner", ["learner", "--supervise", "--http-port", str(learner)], learner)
        running.fleet.wait_ready()
        yield running


def decided(log: KafkaLog) -> tuple[set[str], Counter[str]]:
    """Return the ids of all graphs, and the number of different decisions on each."""
    graphs = {each.record(ModelGraph).graph_id for each in log.read(GRAPHS.name)}
    decisions = {(decode(each.value, DECISIONS.record).graph_id, each.value) for each in log.read(DECISIONS.name)}  # type: ignore[attr-defined]
    return graphs, Counter(graph for graph, _ in decisions)


def wait_until_decided(log: KafkaLog, timeout_s: float = 150.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        graphs, decisions = decided(log)
        if len(graphs) >= LOAD.windows(WINDOW) and graphs <= decisions.keys():
            break
        assert time.monotonic() < deadline, f"{len(graphs)} graphs, {len(decisions)} decided"
        time.sleep(1)
    assert len(graphs) == LOAD.windows(WINDOW)
    assert set(decisions.values()) == {1}, "a graph has different decisions"


@pytest.mark.timeout(420)
def test_an_installation_recovers_from_an_outage_and_killed_processes(installation: Installation) -> None:
    fleet = installation.fleet
    with closing(KafkaLog(installation.kafka, installation.names)) as log:
        log.wait_for(CHECKPOINTS.name, bool)
        supervisors = [fleet.pid("worker"), fleet.pid("learner")]
        publishing = Publishing(installation, seconds=45)
        publishing.start()
        time.sleep(5)
        installation.restart_broker(down_s=OUTAGE_S, power_cut=True)
        time.sleep(5)
        for pid in supervisors:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for child in children:
                os.kill(int(child), signal.SIGKILL)
        publishing.join(120)
        assert publishing.undelivered == 0
        wait_until_decided(log)
        fleet.wait_ready()
        assert [fleet.pid("worker"), fleet.pid("learner")] == supervisors
        assert fleet.ends == []
        assert [each for topic in CATALOGUE for each in log.read(topic.dead_letters)] == []


@pytest.mark.timeout(420)
def test_a_worker_of_all_stages_stops_in_time_under_load(installation: Installation) -> None:
    fleet = installation.fleet
    with closing(KafkaLog(installation.kafka, installation.names)) as log:
        log.wait_for(CHECKPOINTS.name, bool)
        publishing = Publishing(installation, seconds=30)
        publishing.start()
        log.wait_for(DECISIONS.name, bool)
        assert publishing.left > 50  # still publishing
        began = time.monotonic()
        fleet.stop("worker")
        took = time.monotonic() - began
        assert [(end.name, end.code, end.meant) for end in fleet.ends] == [("worker", 0, True)]
        assert took < STOP_S
        fleet.start("worker")
        publishing.join(120)
        assert publishing.undelivered == 0
        wait_until_decided(log)
        assert "is cut short" not in fleet.last_words("worker")
        print(f"all six stages stopped in {took:.1f} s")
