"""A replay decides the same graphs to the same bytes, under the recorded policies and orders."""

from pathlib import Path

import pytest

from tamiyo.models.checkpoint import CheckpointStore
from tamiyo.schemas.adaptation import AdaptationDecision, ControlCommand
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.codec import encode
from tamiyo.schemas.topics import CHECKPOINTS, CONTROL, DECISIONS
from tamiyo.streams.messages import Message
from tamiyo.streams.settings import DecisionSettings
from tamiyo.streams.stages.decisions.stage import DecisionsStage
from tests.streams.stages.decisions.bench import GRAPH, Bench, graph
from tests.support.recordings import make_recording, message
from tests.support.released import make_policy, release
from tests.support.stage_log import FixedView, Log, StageHarness

PAUSE = ControlCommand(run_id="*", time_ms=10, paused=True, reason="lunch")
PROTECT = ControlCommand(run_id="run-1", time_ms=20, protected_layers=[GRAPH.layer_id[0]], dry_run=True)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "store")


@pytest.fixture
def graphs() -> list[ModelGraph]:
    return [graph(index, run_id=run_id) for index in range(8) for run_id in ("run-1", "run-2")]


@pytest.fixture
def live(bench: Bench, graphs: list[ModelGraph]) -> list[AdaptationDecision]:
    """Decisions under two policies and changing orders."""
    bench.decide(*graphs[:4])
    bench.control.records["*"] = PAUSE
    bench.decide(*graphs[4:7])
    bench.control.records = {"run-1": PROTECT}
    bench.checkpoints.records["tamiyo"] = release(bench.url, 1, make_policy(1, learned=True))
    return bench.decide(*graphs[7:])


def recorded(folder: Path, decisions: list[AdaptationDecision], *orders: ControlCommand) -> Path:
    messages: list[Message] = [message(DECISIONS.name, n, encode(each)) for n, each in enumerate(decisions)]
    messages += [message(CONTROL.name, n, encode(each)) for n, each in enumerate(orders)]
    make_recording(folder, messages)
    return folder


def again(url: Path, folder: Path, graphs: list[ModelGraph], version: int | None = None) -> StageHarness:
    """Decide `graphs` as a replay does: no policy is announced, and the order on the topic is another one."""
    settings = DecisionSettings(checkpoint_url=f"file://{url}", recorded=str(folder), recorded_version=version)
    log = Log()
    views = {CHECKPOINTS.name: FixedView(), CONTROL.name: FixedView({"*": PAUSE})}
    harness = StageHarness(lambda: DecisionsStage(0, settings, views), log.messages)
    for each in graphs:
        log.add(DecisionsStage.inputs[0], each)
    return harness.run()


def test_the_same_policies_and_orders_give_the_same_bytes(
    bench: Bench, graphs: list[ModelGraph], live: list[AdaptationDecision], tmp_path: Path
) -> None:
    assert {each.policy_version for each in live} == {0, 1}
    assert live[4].orders == {"*": 10}
    assert live[-2].orders == {"run-1": 20}
    assert live[-2].dry_run
    folder = recorded(tmp_path / "recording", live, PAUSE, PROTECT)
    decisions = again(bench.url, folder, graphs).records(DECISIONS)
    assert [encode(each) for each in decisions] == [encode(each) for each in live]


def test_the_first_decision_recorded_under_an_id_counts(
    bench: Bench, graphs: list[ModelGraph], live: list[AdaptationDecision], tmp_path: Path
) -> None:
    repeated = live[0].model_copy(update={"policy_version": 1})
    folder = recorded(tmp_path / "recording", [*live, repeated], PAUSE, PROTECT)
    assert again(bench.url, folder, graphs[:1]).records(DECISIONS)[0].policy_version == 0


def test_one_policy_can_decide_all(
    bench: Bench, graphs: list[ModelGraph], live: list[AdaptationDecision], tmp_path: Path
) -> None:
    folder = recorded(tmp_path / "recording", live, PAUSE, PROTECT)
    decisions = again(bench.url, folder, graphs, version=1).records(DECISIONS)
    assert {each.policy_version for each in decisions} == {1}
    assert [each.orders for each in decisions] == [each.orders for each in live]


def test_a_graph_without_a_recorded_decision_uses_its_runs_last_policy(
    bench: Bench, graphs: list[ModelGraph], live: list[AdaptationDecision], tmp_path: Path
) -> None:
    folder = recorded(tmp_path / "recording", live, PAUSE, PROTECT)
    more = [*graphs, graph(8, run_id="run-2"), graph(0, run_id="run-3")]
    harness = again(bench.url, folder, more)
    decisions = {each.run_id: each for each in harness.records(DECISIONS)}
    assert decisions["run-2"].step == 440
    assert decisions["run-2"].policy_version == 1
    assert "run-3" not in decisions
    (reject,) = harness.rejected
    assert reject.reason == "the recording names no policy for run run-3; choose one with --policy-version"


def test_a_missing_policy_or_order_rejects_the_graph_and_the_rest_is_decided(
    bench: Bench, graphs: list[ModelGraph], live: list[AdaptationDecision], tmp_path: Path
) -> None:
    CheckpointStore(f"file://{bench.url}").delete(0)
    folder = recorded(tmp_path / "recording", live, PAUSE)
    harness = again(bench.url, folder, graphs)
    reasons = {each.reason for each in harness.rejected}
    assert any("there is no policy-000000.safetensors" in reason for reason in reasons)
    assert any("the recording lacks the order for run-1 of time_ms 20" in reason for reason in reasons)
    assert len(harness.records(DECISIONS)) + len(harness.rejected) == len(graphs)
    assert harness.records(DECISIONS)
