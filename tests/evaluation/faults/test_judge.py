"""The judge of fault runs finds bugs planted in real stages that crash."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tamiyo.evaluation.common.live_runs import Live
from tamiyo.evaluation.common.simulated_runs import TOPICS, Load, frames, topology
from tamiyo.evaluation.faults.collect import collect
from tamiyo.evaluation.faults.judge import judge
from tamiyo.evaluation.faults.ledger import Ledger
from tamiyo.schemas.codec import encode
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import DECISIONS, TOPOLOGY, WINDOWS
from tamiyo.streams.admin.topics import Topics
from tests.evaluation.faults.planted import CRASHED
from tests.support.kafka_log import KafkaLog, LoggedMessage

ROOT = Path(__file__).parents[3]
LOAD = Load(runs=2, layers=3, frames=40, name="planted")
WIDTH = 50
BEHIND = 2  # frames of one run behind the other, so that a window is open whenever one of the other run's closes


class Scene:
    """Two runs of a worker with a planted bug: the first crashes, the second continues."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames, folder: Path, bug: str, stages: Sequence[str]) -> None:
        self.store = f"file://{folder}/store"
        self._kafka, self._names, self._folder, self._bug, self._stages = kafka, names, folder, bug, stages

    def start(self, crash_at: int) -> "subprocess.Popen[bytes]":
        environment = {
            **os.environ,
            "TAMIYO_KAFKA_BOOTSTRAP_SERVERS": self._kafka.bootstrap_servers,
            "TAMIYO_TOPIC_PREFIX": self._names.prefix,
            "TAMIYO_STORE_URL": self.store,
            # Only the plant commits.
            "TAMIYO_WORKER_COMMIT_INTERVAL_S": "60",
            # A larger batch could contain both runs to their end and be lost whole.
            "TAMIYO_WORKER_MAX_BATCH": "10",
            "OMP_NUM_THREADS": "1",
        }
        with (self._folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "tests.evaluation.faults.planted", self._bug, str(crash_at), *self._stages]
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def run(self, crash_at: int, done: Callable[[], object]) -> None:
        first = self.start(crash_at)
        try:
            assert first.wait(60) == CRASHED, (self._folder / "log").read_text()
        finally:
            first.kill()
        second = self.start(0)
        try:
            done()
            time.sleep(1.0)  # for records that should not arrive
        finally:
            second.terminate()
            second.wait(20)


def publish(kafka: KafkaSettings, names: TopicNames) -> None:
    """Publish two runs on one partition, one behind the other."""
    live = Live(kafka, names, "memory://")
    steps: list[tuple[int, Any]] = []
    for run in range(LOAD.runs):
        live.publish(TOPOLOGY, topology(LOAD.run_ids[run], LOAD.layers), LOAD.run_ids[run])
        steps += [(number // 3 + BEHIND * run, frame) for number, frame in enumerate(frames(LOAD, run))]
    for _, frame in sorted(steps, key=lambda step: step[0]):
        live._producer.produce(names.full(TOPICS[type(frame)].name), encode(frame), frame.run_id, partition=0)
    live.flush()


def kinds(kafka: KafkaSettings, names: TopicNames, scene: Scene, stages: Sequence[str]) -> set[str]:
    evidence = collect(kafka, names, scene.store, Ledger())
    return {each.kind for each in judge(evidence, width=WIDTH, stages=stages)}


@pytest.mark.flow
@pytest.mark.parametrize(
    ("bug", "expected"),
    [
        ("none", set()),
        # The window is lost, or contains only the signals after the commit.
        ("acknowledge", {"a window is missing", "a window is wrong"}),
        ("restore", {"two contents under one id"}),
    ],
)
def test_bugs_of_a_stage_that_crashes_are_found(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, tmp_path: Path, bug: str, expected: set[str]
) -> None:
    stages = ("intake", "windows")
    Topics(kafka, names).touch()
    publish(kafka, names)
    scene = Scene(kafka, names, tmp_path, bug, stages)

    def over(messages: list[LoggedMessage]) -> bool:
        windows = [each.record(WINDOWS.record) for each in messages]
        return {each.run_id for each in windows if each.final} == set(LOAD.run_ids)

    scene.run(7, lambda: kafka_log.wait_for(WINDOWS.name, over))
    found = kinds(kafka, names, scene, stages)
    assert found & expected if expected else not found


@pytest.mark.flow
@pytest.mark.parametrize(("bug", "expected"), [("none", set()), ("identity", {"several decision ids"})])
def test_a_random_id_is_found(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, tmp_path: Path, bug: str, expected: set[str]
) -> None:
    stages = ("intake", "windows", "graphs", "decisions")
    Topics(kafka, names).touch()
    scene = Scene(kafka, names, tmp_path, bug, stages)
    Live(kafka, names, scene.store).release(0)
    publish(kafka, names)
    graphs = LOAD.windows(WIDTH)

    def over(messages: list[LoggedMessage]) -> bool:
        return len({each.record(DECISIONS.record).graph_id for each in messages}) == graphs

    scene.run(5, lambda: kafka_log.wait_for(DECISIONS.name, over))
    found = kinds(kafka, names, scene, stages)
    assert found & expected if expected else not found
