"""`tamiyo topics grow`: every key's newest record ends on its own partition, and no older one comes back."""

import json
import sys
import time
from typing import Any

import pytest

from tamiyo.schemas.adaptation import CompiledKernel, ControlCommand, KernelStatus
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.errors import BrokerError, ConfigurationError
from tamiyo.schemas.kafka import TopicNames
from tamiyo.schemas.topics import CATALOGUE, CONTROL, KERNELS, MODEL_PERFORMANCE, TOPOLOGY, Topic
from tamiyo.streams import cli
from tamiyo.streams.admin import growth
from tamiyo.streams.admin.growth import Growth, own_partition
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.headers import ID_HEADER, POSITIONS_HEADER
from tests.streams.admin.installation import FEW, MORE, QUIET_S, Installation
from tests.support.telemetry import model_performance, topology

RUNS = [f"run-{index}" for index in range(12)]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "READERS_S", 0.0)


def long_ago(seconds: float = 3_600.0) -> int:
    return int(1000 * (time.time() - seconds))


def order(run_id: str, time_ms: int, **more: Any) -> ControlCommand:
    return ControlCommand(run_id=run_id, time_ms=time_ms, **more)


def test_every_key_moves_to_its_partition_with_its_headers(installation: Installation) -> None:
    for run in RUNS:
        installation.send(TOPOLOGY, run, topology(["a"], run_id=run), timestamp_ms=long_ago())
    kernel = CompiledKernel(
        run_id=RUNS[0], kernel_id="k", decision_id="d", layer_id="0", blueprint="b", status=KernelStatus.COMPILED
    )
    moving = next(run for run in RUNS if own_partition(run.encode(), FEW) != own_partition(run.encode(), MORE))
    headers = [(ID_HEADER, b"k"), (POSITIONS_HEADER, b"tamiyo.adaptation.decisions=5000")]
    installation.send(KERNELS, moving, kernel.model_copy(update={"run_id": moving}), headers=headers)
    installation.send(CONTROL, "*", order("*", 1, paused=True))
    growing = installation.grow(MORE)
    installation.settled(MORE)
    assert len(growing.grown) == (3 * len(CATALOGUE) if installation.partitions == FEW else 0)
    assert set(installation.places(TOPOLOGY)) == set(RUNS)
    moved = sum(own_partition(run.encode(), FEW) != own_partition(run.encode(), MORE) for run in RUNS)
    assert growing.moved[TOPOLOGY.name] == growing.removed[TOPOLOGY.name] == moved > 0
    # The positions are those of another partition's inputs.
    found = installation.last(KERNELS)[moving, own_partition(moving.encode(), MORE)]
    assert found.headers == {ID_HEADER: "k"}


def test_an_old_order_does_not_come_back(installation: Installation) -> None:
    """Partitions were added by hand: the run was resumed on its new partition, and its pause stays on the old one."""
    for run in RUNS:
        installation.send(CONTROL, run, order(run, 1, paused=True), timestamp_ms=long_ago())
    installation.topics.grow(MORE)
    installation.producer = AwaitedProducer(installation.kafka)  # knows the new partitions
    for run in RUNS[:6]:
        installation.send(CONTROL, run, order(run, 2), partitions=MORE)
    for run in RUNS[6:9]:
        installation.send(CONTROL, run, None, partitions=MORE)  # the orders were removed
    (finding,) = growth.findings(installation.kafka, installation.names)
    assert finding.state == "problem"
    assert finding.advice == "`tamiyo topics grow --partitions 4` moves them"
    installation.grow(MORE)
    installation.settled(MORE)
    assert set(installation.places(CONTROL)) == {*RUNS[:6], *RUNS[9:]}
    last = installation.last(CONTROL)
    for run in (*RUNS[:6], *RUNS[9:]):
        message = last[run, own_partition(run.encode(), MORE)]
        assert message.record(ControlCommand).paused == (run in RUNS[9:])


@pytest.mark.parametrize("stopped_at", ["after one topic", "before the move", "within the move", "before the removal"])
def test_an_interrupted_growth_is_continued(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, stopped_at: str
) -> None:
    for run in RUNS:
        installation.send(TOPOLOGY, run, topology(["a"], run_id=run), timestamp_ms=long_ago())
        installation.send(CONTROL, run, order(run, 1, paused=True), timestamp_ms=long_ago())

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def one(self: Growth, topic: Topic, *, remove: bool = False) -> int:
        return move(self, topic, remove=remove) if topic is TOPOLOGY else interrupt() or 0

    move = Growth._move
    with monkeypatch.context() as patched:
        if stopped_at == "after one topic":
            Topics(installation.kafka, installation.names, (TOPOLOGY,)).grow(MORE)
            patched.setattr(Topics, "grow", interrupt)
        elif stopped_at == "before the move":
            patched.setattr(Growth, "_move", interrupt)
        elif stopped_at == "within the move":
            patched.setattr(Growth, "_move", one)
        else:
            patched.setattr(time, "sleep", lambda seconds: interrupt() if seconds == 0.0 else None)
        with pytest.raises(KeyboardInterrupt):
            installation.grow(MORE)
    problems = [each.text for each in installation.topics.findings()]
    problems += [each.text for each in growth.findings(installation.kafka, installation.names)]
    assert problems  # `tamiyo topics check` sees it
    installation.grow(MORE)
    installation.settled(MORE)
    assert set(installation.places(TOPOLOGY)) == set(installation.places(CONTROL)) == set(RUNS)


def test_what_is_published_meanwhile_is_not_lost(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer that does not know the new partitions yet gives another order on the old one."""
    run = next(run for run in RUNS if own_partition(run.encode(), FEW) != own_partition(run.encode(), MORE))
    installation.send(CONTROL, run, order(run, 1, paused=True), timestamp_ms=long_ago())
    again = order(run, 2, dry_run=True)
    sleep = time.sleep
    monkeypatch.setattr(
        time,
        "sleep",
        lambda seconds: sleep(seconds) if seconds else installation.send(CONTROL, run, again),
    )
    with pytest.raises(BrokerError, match="1 keys were published to their old partitions meanwhile"):
        installation.grow(MORE)
    monkeypatch.setattr(time, "sleep", sleep)
    installation.grow(MORE)
    installation.settled(MORE)
    assert installation.last(CONTROL)[run, own_partition(run.encode(), MORE)].record(ControlCommand) == again


def test_live_runs_are_refused_and_ended_or_silent_ones_are_not(installation: Installation) -> None:
    now = long_ago(0)
    installation.send(MODEL_PERFORMANCE, "live", model_performance(5, run_id="live"))
    installation.send(MODEL_PERFORMANCE, "killed", model_performance(5, run_id="killed"), timestamp_ms=now - 90_000)
    for final in (False, True):
        frame = model_performance(5, run_id="ended", final=final)
        installation.send(MODEL_PERFORMANCE, "ended", frame, timestamp_ms=now - 2_000)
    again = model_performance(5, run_id="again", final=True)
    installation.send(MODEL_PERFORMANCE, "again", again, timestamp_ms=now - 2_000)
    installation.send(TOPOLOGY, "again", topology(["a"], run_id="again"), timestamp_ms=now - 1_000)  # attached again
    installation.send(TOPOLOGY, "begins", topology(["a"], run_id="begins"))
    with pytest.raises(ConfigurationError, match=r"3 published within 60 s without an end: again, begins, live"):
        installation.grow(MORE + 1)
    assert {each.partitions for each in installation.topics.states()} == {installation.partitions}


def test_a_number_that_does_not_fit_is_refused(installation: Installation, names: TopicNames) -> None:
    with pytest.raises(ConfigurationError, match=r"expected more than \d partitions.*got 1: Kafka cannot take"):
        installation.grow(1)
    with pytest.raises(ConfigurationError, match="nothing to do"):
        installation.grow(installation.partitions)
    other = TopicNames(prefix=f"{names.prefix}other.")
    with pytest.raises(ConfigurationError, match=r"topics do not exist: .*`tamiyo topics create`"):
        Growth(installation.kafka, other, 4).check(quiet_s=QUIET_S)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tamiyo", "topics", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_line(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "check") == 0
    for each in RUNS:
        installation.send(TOPOLOGY, each, topology(["a"], run_id=each), timestamp_ms=long_ago())
    installation.topics.grow(MORE)
    capsys.readouterr()
    assert run(monkeypatch, "check") == 1
    assert "`tamiyo topics grow --partitions 4` moves them" in capsys.readouterr().out
    assert run(monkeypatch, "grow", "--partitions", str(MORE), "--yes", "--json") == 0
    captured = capsys.readouterr()
    done = json.loads(captured.out)
    assert (done["partitions"], done["grown"]) == (MORE, [])
    assert done["moved"] == done["removed"]
    assert "records moved" in captured.err
    assert run(monkeypatch, "check", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(monkeypatch, "grow", "--partitions", "1", "--yes") == 1
    assert "Kafka cannot take partitions away" in " ".join(capsys.readouterr().err.split())
