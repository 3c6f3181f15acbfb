"""Finished runs are forgotten, and no other."""

import json
import sys
from typing import Any

import pytest

from tamiyo.schemas.adaptation import ControlCommand
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CONTROL, DECISIONS, KERNEL_PERFORMANCE, KERNELS, MODEL_PERFORMANCE, TOPOLOGY
from tamiyo.streams import cli
from tamiyo.streams.admin.runs import SIGNS, FinishedRuns, live_runs
from tests.streams.admin.installation import DAY_S, Creation, Installation
from tests.support.runs import decision
from tests.support.telemetry import kernel_performance, model_performance, topology

NEEDED = tuple(dict.fromkeys((*SIGNS, KERNELS, CONTROL)))


@pytest.fixture
def creation() -> Creation:
    """The topics that show which runs there are; old records in them must not expire."""
    return Creation(NEEDED, partitions=4, retention_ms=-1)


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


def test_what_nobody_can_read_after_the_final_frame_does_not_make_a_run_live(installation: Installation) -> None:
    for run in ("ended", "going"):
        installation.send(MODEL_PERFORMANCE, run, model_performance(1, run_id=run, final=run == "ended"))
        installation.send(MODEL_PERFORMANCE, run, b"no record")
    assert live_runs(installation.kafka, installation.names) == ["going"]


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
