"""Finished runs are forgotten, and no other."""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tamiyo.schemas.adaptation import CompiledKernel, ControlCommand, KernelStatus
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import CONTROL, DECISIONS, KERNEL_PERFORMANCE, KERNELS, MODEL_PERFORMANCE, TOPOLOGY, Topic
from tamiyo.streams import cli
from tamiyo.streams.admin.runs import SIGNS, FinishedRuns, live_runs
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.runtime.views import Views
from tests.streams.admin.embedded import as_real
from tests.support.kafka_log import KafkaLog
from tests.support.runs import decision
from tests.support.telemetry import kernel_performance, model_performance, topology

DAY_S = 86_400.0
NEEDED = tuple(dict.fromkeys((*SIGNS, KERNELS, CONTROL)))


class Installation:
    """The topics that show which runs there are."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames, log: KafkaLog) -> None:
        self.kafka = kafka
        self.names = names
        self.log = log
        self._producer = AwaitedProducer(kafka)

    def send(self, topic: Topic, run_id: str, record: Record, *, days_ago: float = 0.0, partition: int = -1) -> None:
        time_ms = int(1000 * (time.time() - days_ago * DAY_S))
        self._producer.produce(
            self.names.full(topic.name), encode(record), run_id, timestamp_ms=time_ms, partition=partition
        )
        self._producer.flush()

    def attach(self, run_id: str, *, days_ago: float) -> None:
        """Publish what compacted topics keep of a run."""
        self.send(TOPOLOGY, run_id, topology(["a"], run_id=run_id), days_ago=days_ago)
        kernel = CompiledKernel(
            run_id=run_id, kernel_id="k", decision_id="d", layer_id="0", blueprint="b", status=KernelStatus.COMPILED
        )
        self.send(KERNELS, run_id, kernel, days_ago=days_ago)
        self.send(CONTROL, run_id, ControlCommand(run_id=run_id, time_ms=1, paused=True), days_ago=days_ago)

    def finished(self, days: float, run_id: str | None = None) -> FinishedRuns:
        return FinishedRuns(self.kafka, self.names, older_than_s=days * DAY_S, run_id=run_id)

    def views(self) -> dict[str, set[str]]:
        """The keys that stages hold of each topic after they have started."""

        async def read() -> dict[str, set[str]]:
            views = Views((TOPOLOGY, KERNELS, CONTROL), self.kafka, self.names, fetch_wait_ms=10)
            await views.start()
            await views.wait(20)
            found = {name: {key for key, _ in view.items()} for name, view in views.by_name.items()}
            await views.stop()
            return found

        return asyncio.run(read())


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.kafka)])
def installation(
    request: pytest.FixtureRequest,
    names: TopicNames,
    open_log: Callable[[KafkaSettings], KafkaLog],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Installation]:
    """On a real Kafka and on the embedded broker."""
    real = request.param == "real"
    servers = request.getfixturevalue("real_kafka") if real else request.getfixturevalue("kafka").bootstrap_servers
    monkeypatch.setenv("TAMIYO_KAFKA_BOOTSTRAP_SERVERS", servers)
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", names.prefix)
    kafka = KafkaSettings(bootstrap_servers=servers)
    topics = Topics(kafka, names, NEEDED)
    topics.create(partitions=4, retention_ms=-1)  # old records must not expire
    if not real:
        as_real(monkeypatch)
    yield Installation(kafka, names, open_log(kafka))
    if real:
        topics.delete()


def test_nothing_of_finished_runs_is_read_at_the_next_start(installation: Installation) -> None:
    for run in ("old", "older"):
        installation.attach(run, days_ago=40)
    installation.attach("recent", days_ago=20)
    installation.send(CONTROL, "*", ControlCommand(run_id="*", time_ms=1, dry_run=True), days_ago=400)
    finished = installation.finished(30)
    assert [each.run_id for each in finished.found] == ["old", "older"]
    assert installation.views()[TOPOLOGY.name] == {"old", "older", "recent"}
    finished.forget()
    assert installation.views() == {TOPOLOGY.name: {"recent"}, KERNELS.name: {"recent"}, CONTROL.name: {"*", "recent"}}
    assert installation.finished(30).found == []  # calling again changes nothing


def test_a_run_that_was_active_since_is_kept(installation: Installation) -> None:
    for run in ("training", "decided", "foreign", "quiet"):
        installation.attach(run, days_ago=40)
    installation.send(MODEL_PERFORMANCE, "training", model_performance(5, run_id="training"), days_ago=29)
    installation.send(DECISIONS, "decided", decision("d", run_id="decided"), days_ago=29)
    installation.send(KERNEL_PERFORMANCE, "foreign", kernel_performance(5, run_id="foreign"), days_ago=29)
    installation.send(MODEL_PERFORMANCE, "quiet", model_performance(5, run_id="quiet"), days_ago=31)
    assert [each.run_id for each in installation.finished(30).found] == ["quiet"]
    (only,) = installation.finished(30).found
    assert only.described()["records"] == {TOPOLOGY.name: 1, KERNELS.name: 1, CONTROL.name: 1}


def test_a_live_run_is_never_forgotten_however_short_the_age(installation: Installation) -> None:
    for run in ("live", "ended"):
        installation.attach(run, days_ago=1)
        frame = model_performance(5, run_id=run, final=run == "ended")
        installation.send(MODEL_PERFORMANCE, run, frame, days_ago=60 / DAY_S)
    finished = installation.finished(30 / DAY_S)
    assert [each.run_id for each in finished.found] == ["ended"]
    assert finished.live == ["live"]
    assert live_runs(installation.kafka, installation.names) == ["live"]


def test_the_last_frame_ends_a_run_though_the_hosts_clock_was_set_back(installation: Installation) -> None:
    for run in ("ended", "going", "attached-again", "attached-ahead"):
        ahead = run == "attached-ahead"
        installation.send(TOPOLOGY, run, topology(["a"], run_id=run), days_ago=-0.03 if ahead else 0.01)
        installation.send(MODEL_PERFORMANCE, run, model_performance(1, run_id=run), days_ago=-0.02)
        installation.send(MODEL_PERFORMANCE, run, model_performance(2, run_id=run, final=run != "going"))
    installation.send(TOPOLOGY, "attached-again", topology(["a"], run_id="attached-again"))
    assert live_runs(installation.kafka, installation.names) == ["attached-again", "going"]


def test_stale_copies_on_other_partitions_are_removed_too(installation: Installation) -> None:
    for partition in (0, 1):
        installation.send(TOPOLOGY, "run", topology(["a"], run_id="run"), days_ago=40 - partition, partition=partition)
    finished = installation.finished(30)
    assert [each.places for each in finished.found] == [[(TOPOLOGY.name, 0), (TOPOLOGY.name, 1)]]
    finished.forget()
    assert installation.views()[TOPOLOGY.name] == set()
    assert installation.finished(0).found == []


def test_the_command_line(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["tamiyo", "runs", "forget", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured: Any = capsys.readouterr()
        assert int(ended.value.code or 0) == status, captured
        return str(captured.err if status else captured.out)

    for name in ("first", "second"):
        installation.attach(name, days_ago=40)
    installation.attach("new", days_ago=1)
    assert "2 runs would be forgotten" in run("--older-than", "30d", "--dry-run")
    assert "run new is not old enough" in run("--run", "new")
    assert "no record of run 'other' is kept" in run("--run", "other", status=1)
    done = json.loads(run("--run", "first", "--yes", "--json"))
    assert [each["run_id"] for each in done["runs"]] == ["first"]
    assert done["forgotten"] is True
    assert installation.views()[TOPOLOGY.name] == {"second", "new"}
    assert "1 runs are forgotten" in run("--yes")
    assert "no run is old enough" in run("--yes")


def test_the_embedded_broker_has_nothing_to_forget(kafka: KafkaSettings, names: TopicNames) -> None:
    with pytest.raises(ConfigurationError, match="embedded broker"):
        FinishedRuns(kafka, names, older_than_s=1.0)
