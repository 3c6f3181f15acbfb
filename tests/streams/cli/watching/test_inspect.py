"""`tamiyo runs` and `tamiyo inspect` on topics and on a recording."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tamiyo.schemas.adaptation import ControlCommand
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import CATALOGUE, CONTROL, DECISIONS, MODEL_PERFORMANCE, OUTCOMES, REWARDS, TOPOLOGY, Topic
from tamiyo.streams import cli
from tamiyo.streams.cli.watching import reading, runs
from tamiyo.streams.watch.terminal import SORTS
from tests.support.results import outcome, reward
from tests.support.runs import decision
from tests.support.telemetry import model_performance, topology

ROOT = Path(__file__).parents[4]
RECORDING = ROOT / "tests" / "data" / "recording-0.1.0"
RUN, OTHER, DONE = "mnist1d-0", "mnist1d-11", "digits-0"
FIRST = decision("first", run_id=RUN, step=100)


class Installation:
    """Topics with three runs: one adapted, one paused, one finished."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        self.names = names
        self.environment = {
            "TAMIYO_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "TAMIYO_TOPIC_PREFIX": names.prefix,
        }
        self.now_ms = 1000 * int(time.time())
        self._producer = AwaitedProducer(kafka)
        for run_id, task, steps in ((RUN, "mnist1d", 400), (OTHER, "mnist1d", 40), (DONE, "digits", 20)):
            self.send(TOPOLOGY, topology(["a", "b"], run_id=run_id).model_copy(update={"task": task}))
            for step in range(0, steps + 1, 20):
                final = run_id == DONE and step == steps
                frame = model_performance(step, 2.0 / (1 + step), run_id=run_id, final=final, parameters=1_000 + step)
                self.send(MODEL_PERFORMANCE, frame)
        self.send(DECISIONS, FIRST)
        self.send(DECISIONS, decision("idle", run_id=RUN, step=50, type="no_op", layer=None))
        self.send(OUTCOMES, outcome(run_id=RUN, decision_id=FIRST.decision_id, step=101))
        self.send(REWARDS, reward(run_id=RUN, decision_id=FIRST.decision_id, total=0.25, worth=0.5))
        self.send(CONTROL, ControlCommand(run_id=OTHER, time_ms=self.now_ms, paused=True, reason="spike"))

    def send(self, topic: Topic, record: Record | None, key: str | None = None) -> None:
        value = None if record is None else encode(record)
        key = str(record.run_id) if key is None else key  # type: ignore[union-attr]
        self._producer.produce(self.names.full(topic.name), value, key)
        self._producer.flush()


@pytest.fixture(scope="module")
def installation(embedded: Any) -> Installation:
    names = TopicNames(prefix="inspected.")
    return Installation(KafkaSettings(bootstrap_servers=embedded.bootstrap_servers), names)


Command = Callable[..., str]


@pytest.fixture
def tamiyo(installation: Installation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line; return its standard output, or standard error where it fails."""
    for name, value in {**installation.environment, "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["tamiyo", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert int(ended.value.code or 0) == status, captured
        return captured.err if status else captured.out

    return run


def words(text: str) -> str:
    return " ".join(text.split())


def test_runs_are_listed(tamiyo: Command) -> None:
    listed = tamiyo("runs")
    rows = [line.split() for line in listed.splitlines()[2:5]]
    assert [row[:4] for row in rows] == [
        [RUN, "training", "400", "0.004988"], [OTHER, "paused", "40", "0.04878"], [DONE, "finished", "20", "0.09524"]
    ]  # fmt: skip
    assert "3 runs: 1 training, 1 paused, 1 finished" in listed
    assert "+0.25" in rows[0]
    assert tamiyo("runs", "list").splitlines()[0] == listed.splitlines()[0]


def test_runs_are_listed_as_json_with_options_of_the_list(tamiyo: Command) -> None:
    def ids(*options: str) -> list[str]:
        return [row["run_id"] for row in json.loads(tamiyo("runs", "--json", *options))["runs"]]

    assert ids("--sort", "loss") == [RUN, OTHER, DONE]
    assert ids("--sort", "run") == [DONE, RUN, OTHER]
    assert ids("--state", "finished", "--state", "paused", "--sort", "run") == [DONE, OTHER]
    assert ids("--task", "MNIST", "--sort", "run") == [RUN, OTHER]
    assert ids("--since", "2999-01-01") == []
    assert json.loads(tamiyo("runs", "--json"))["source"]["reading"] is False


def test_the_options_are_those_of_the_views() -> None:
    assert {each.value for each in runs.Sort} == set(SORTS)


def test_a_run_is_inspected(tamiyo: Command) -> None:
    shown = tamiyo("inspect", RUN)
    plain = words(shown)
    assert shown.startswith(f"{RUN}  training  step 400")
    assert "task mnist1d" in plain
    assert "1 more decision, 1 of all to do nothing" in plain
    assert re.search(r"100 load parallel_expansion .*0\.90? executed \+0\.25 \+0\.5000", plain)
    assert "adapted " in shown
    assert "▲" in shown
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "no_op" in tamiyo("inspect", RUN, "--no-ops")


def test_a_beginning_of_an_id_is_enough(tamiyo: Command) -> None:
    assert json.loads(tamiyo("inspect", "dig", "--json"))["run"]["run_id"] == DONE
    assert json.loads(tamiyo("inspect", "mnist1d-0", "--json"))["run"]["run_id"] == RUN
    assert "2 runs begin with mnist: mnist1d-0, mnist1d-11" in tamiyo("inspect", "mnist", status=1)
    missing = tamiyo("inspect", "mnist1d-10", status=1)
    assert "no run mnist1d-10; the nearest are mnist1d-0, mnist1d-11" in words(missing)


def test_a_decision_is_inspected(tamiyo: Command) -> None:
    shown = words(tamiyo("inspect", RUN, "--decision", FIRST.decision_id[:6]))
    assert f"{RUN} step 100 load parallel_expansion at 0 executed" in shown
    assert "> load parallel_expansion at 0 0.5000" in shown
    assert "outcome executed at step 101" in shown
    assert "Reward +0.250 (revision 1, complete)" in shown
    document = json.loads(tamiyo("inspect", RUN, "--decision", FIRST.decision_id, "--json"))
    assert document["decision"]["decision_id"] == FIRST.decision_id
    assert "has no decision zz among the 2" in words(tamiyo("inspect", RUN, "--decision", "zz", status=1))


@pytest.mark.parametrize(
    ("arguments", "words_of_error"),
    [
        (["inspect", "a b"], "RUN: expected letters"),
        (["inspect", RUN, "--since", "soon"], "--since soon: expected a time"),
        (["inspect", RUN, "--recording", str(RECORDING), "--watch"], "leave out --watch and --since"),
        (["inspect", RUN, "--recording", "/nowhere"], "is not a recording"),
        (["runs", "--recording", "/nowhere"], "is not a recording"),
        (["runs", "--since", "soon"], "--since soon: expected a time"),
    ],
)
def test_wrong_options_are_explained(tamiyo: Command, arguments: list[str], words_of_error: str) -> None:
    assert words_of_error in tamiyo(*arguments, status=1)


def test_a_recording_is_listed_and_inspected_without_a_broker(tamiyo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    rows = json.loads(tamiyo("runs", "--recording", str(RECORDING), "--json"))["runs"]
    assert len(rows) > 1
    assert rows[0]["run_id"] in tamiyo("inspect", rows[0]["run_id"], "--recording", str(RECORDING))


def test_an_installation_without_topics(tamiyo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", "none-has-this.")
    assert "tamiyo topics create" in tamiyo("inspect", RUN, status=1)


def test_forgotten_runs_are_not_suggested(tamiyo: Command, installation: Installation) -> None:
    kafka = KafkaSettings(bootstrap_servers=installation.environment["TAMIYO_KAFKA_BOOTSTRAP_SERVERS"])
    installation.send(TOPOLOGY, topology(["a"], run_id="forgotten"))
    assert "forgotten" in reading.runs_on_topics(kafka, installation.names)
    installation.send(TOPOLOGY, None, "forgotten")
    assert set(reading.runs_on_topics(kafka, installation.names)) == {RUN, OTHER, DONE}


def test_runs_by_their_beginnings() -> None:
    assert reading.chosen_run("a", ["a", "ab"]) == "a"
    assert reading.chosen_run("ab", ["abc", "b"]) == "abc"
    assert reading.chosen_run("x", ["abc", "b"]) == "x"
    with pytest.raises(ConfigurationError, match=r"7 runs begin with r: r0, r1, r2, r3, r4 and 2 more"):
        reading.chosen_run("r", [f"r{number}" for number in range(7)])
    assert str(reading.unknown_run("x", [])) == "no run x, and no other"


@pytest.fixture
def started(installation: Installation) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command line in processes of their own."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            **installation.environment,
            "OMP_NUM_THREADS": "1",
            "TERM": "xterm",
            "COLUMNS": "80",
        }
        command = [sys.executable, "-m", "tamiyo.streams.cli", *arguments]
        processes.append(subprocess.Popen(command, env=environment, text=True, **options))
        return processes[-1]

    yield start
    for each in processes:
        if each.poll() is None:
            each.kill()
        each.wait()


def test_json_follows_changes_until_ctrl_c(
    started: Callable[..., subprocess.Popen[str]], installation: Installation
) -> None:
    process = started("inspect", OTHER, "--watch", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert (first["run"]["run_id"], first["run"]["step"]) == (OTHER, 40)
    installation.send(MODEL_PERFORMANCE, model_performance(60, 0.5, run_id=OTHER))
    found: Any = first
    while found["run"]["step"] != 60:
        found = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert all(json.loads(line) for line in rest.splitlines())
    assert "Traceback" not in errors


def test_the_last_frame_is_kept_after_ctrl_c(started: Callable[..., subprocess.Popen[str]]) -> None:
    ours, theirs = pty.openpty()
    process = started("inspect", RUN, "--watch", stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)

    def read(until: Callable[[str], bool]) -> str:
        shown, deadline = "", time.monotonic() + 30
        while not until(shown) and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    shown += os.read(ours, 65_536).decode(errors="replace")
                except OSError:  # the process has closed its side
                    break
        return shown

    first = read(lambda shown: f"{RUN}" in shown and "training" in shown)
    process.send_signal(signal.SIGINT)
    last = read(lambda shown: False if process.poll() is None else "records" in shown)
    os.close(ours)
    assert process.wait(20) == 0
    assert "Traceback" not in first + last
    assert "parallel_expansion" in last
    assert "\x1b[?25h" in last  # the cursor is shown again


def test_nothing_is_read_that_is_not_shown() -> None:
    from tamiyo.streams.cli.watching.inspect import _topics

    names = {topic.name for topic in _topics()}
    left = {topic.name for topic in CATALOGUE} - names
    assert left == {
        "telemetry.execution.kernel_performance", "telemetry.cache.hit_rates", "tamiyo.health.signals",
        "tamiyo.health.windows", "tamiyo.experience", "tamiyo.policy.checkpoints",
    }  # fmt: skip
