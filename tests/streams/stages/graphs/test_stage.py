"""Graphs: the join of windows and topologies, and the history that a restart reads again."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo.models.graph import HISTORY_WINDOWS, build_graph
from tamiyo.schemas.analysis import HealthWindow, ModelGraph
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import RecordError
from tamiyo.schemas.identity import graph_id
from tamiyo.schemas.telemetry import ModelTopology
from tamiyo.schemas.topics import TOPOLOGY, WINDOWS
from tamiyo.streams.settings import GraphSettings, WindowSettings
from tamiyo.streams.stages.base import Incoming
from tamiyo.streams.stages.graphs.stage import GraphsStage
from tamiyo.streams.stages.windows.stage import WindowsStage
from tests.support.restarts import with_crashes, without_crashes
from tests.support.telemetry import COMPANIONS, DictView, outputs, partition, prior_outputs, rejects, signal, topology

KERNEL, LAYER, MODEL = COMPANIONS
LAYERS = ["a", "b"]


def windows(count: int, run_id: str = "run", layers: Sequence[str] = LAYERS, final: bool = False) -> list[HealthWindow]:
    """Return the windows of a run of `count` x 50 steps, made by the windows stage."""
    rng = random.Random(run_id)
    signals = []
    for step in range(0, 50 * count, 25):
        last: dict[str, Any] = {"run_id": run_id, "final": final and step == 50 * count - 25}
        latency: list[float | None] = [rng.random() for _ in layers]
        signals += [
            signal(KERNEL, step, {"execution_latency_ms": latency, "health": latency}, layers=layers, **last),
            signal(LAYER, step, {"gradient_norm": [rng.random() for _ in layers]}, layers=layers, **last),
            signal(MODEL, step, model_metrics={"train_loss": rng.random()}, **last),
        ]
    stage = WindowsStage(0, WindowSettings(idle_timeout_s=0), {})
    produced = [*outputs(stage.feed(partition(signals))), *stage.flush()]
    return [output.record for output in produced]


def stage(topologies: dict[str, Any], build: Any = build_graph, **fields: Any) -> GraphsStage:
    return GraphsStage(0, GraphSettings(**fields), {TOPOLOGY.name: DictView(topologies)}, build)


def fed(records: Sequence[HealthWindow]) -> list[Incoming]:
    return partition(records, WINDOWS.name)


def test_the_end_of_a_replay_releases_or_rejects_what_is_held() -> None:
    log = windows(2) + windows(2, run_id="stranger")
    topologies: dict[str, Any] = {}
    held = stage(topologies)
    assert list(held.feed(fed(log))) == []
    topologies["run"] = topology(LAYERS)
    produced = held.flush()
    assert [one.source.offset for one in outputs(produced) if one.source] == [0, 1]
    assert {one.reason for one in rejects(produced)} == {"no topology of run stranger before the end of the replay"}
    assert held.flush() == []


def test_one_graph_a_window_with_its_history() -> None:
    log = windows(12)
    known = topology(LAYERS)
    produced = outputs(stage({"run": known}).feed(fed(log)))
    assert [one.source.offset for one in produced if one.source] == list(range(12))
    for number, one in enumerate(produced):
        history = log[max(0, number - HISTORY_WINDOWS) : number]
        assert one.record == build_graph(log[number], known, history)
        assert one.identity == one.record.graph_id == graph_id(log[number].window_id, known.topology_id)


def test_windows_wait_for_their_topology_and_give_graphs_in_order() -> None:
    topologies: dict[str, Any] = {}
    graphs = stage(topologies)
    log = fed(windows(4))
    assert not graphs.feed(log[:3])
    assert not graphs.tick(1_000)
    assert graphs.open_offsets() == {WINDOWS.name: 0}
    topologies["run"] = topology(LAYERS)
    produced = outputs(graphs.tick(1_050))
    assert [one.record.window_id for one in produced] == [one.record.window_id for one in log[:3]]
    assert [one.source for one in produced] == log[:3]
    # The history is the same as if the topology had been there first.
    straight = outputs(stage({"run": topology(LAYERS)}).feed(log))
    assert [encode(one.record) for one in [*produced, *outputs(graphs.feed(log[3:]))]] == [
        encode(one.record) for one in straight
    ]


def test_the_next_window_releases_those_held_before_it() -> None:
    topologies: dict[str, Any] = {}
    graphs = stage(topologies)
    log = fed(windows(3))
    graphs.feed(log[:2])
    topologies["run"] = topology(LAYERS)
    assert [one.source for one in outputs(graphs.feed(log[2:]))] == log


def test_windows_wait_for_a_topology_no_longer_than_the_timeout() -> None:
    topologies: dict[str, Any] = {}
    graphs = stage(topologies, topology_timeout_s=60)
    log = fed(windows(4))
    graphs.feed(log[:2])
    assert not graphs.tick(5_000_000)
    assert not graphs.tick(5_059_999)
    produced = graphs.tick(5_060_000)
    assert [one.source for one in rejects(produced)] == log[:2]
    assert all(one.reason == "no topology of run run arrived within 60 s" and not one.late for one in rejects(produced))
    # Rejected windows are still history.
    topologies["run"] = topology(LAYERS)
    (third,) = outputs(graphs.feed(log[2:3]))
    assert third.record == build_graph(log[2].record, topologies["run"], [one.record for one in log[:2]])
    assert graphs.open_offsets() == {WINDOWS.name: 0}


def test_held_windows_are_bounded_and_the_longest_waiting_are_rejected() -> None:
    graphs = stage({}, max_held=3)
    log = fed([*windows(2, "one"), *windows(2, "two")])
    produced = graphs.feed(log)
    assert [one.source for one in rejects(produced)] == log[:1]
    assert "3 windows are held" in rejects(produced)[0].reason
    assert graphs._held == 3


def test_a_window_with_a_layer_unknown_to_the_topology_is_rejected_and_no_history() -> None:
    log = fed([*windows(1), *windows(3, layers=["a", "b", "c"])[1:2], *windows(3)[2:]])
    known = topology(LAYERS)
    produced = stage({"run": known}).feed(log)
    (rejected,) = rejects(produced)
    assert rejected.source is log[1]
    assert "1 layers are not in topology" in rejected.reason
    assert rejected.reason.endswith(": c")
    assert outputs(produced)[1].record == build_graph(log[2].record, known, [log[0].record])


def test_a_window_without_a_possible_graph_is_rejected() -> None:
    def build(window: HealthWindow, known: ModelTopology, history: Sequence[HealthWindow]) -> ModelGraph:
        if window.start == 50:
            raise RecordError("no graph can be made of this")
        return build_graph(window, known, history)

    produced = stage({"run": topology(LAYERS)}, build).feed(fed(windows(3)))
    assert [one.reason for one in rejects(produced)] == ["no graph can be made of this"]
    assert [one.record.step for one in outputs(produced)] == [25, 125]


def test_a_bug_is_not_caught() -> None:
    def build(*_: Any) -> ModelGraph:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage({"run": topology(LAYERS)}, build).feed(fed(windows(1)))


def test_a_repeated_window_is_dropped() -> None:
    log = windows(3)
    graphs = stage({"run": topology(LAYERS)})
    produced = outputs(graphs.feed(fed([*log, log[1], log[2]])))
    assert len(produced) == 3
    assert graphs.counts["repeated"] == 2
    final = windows(2, "done", final=True)
    graphs = stage({"done": topology(LAYERS, "done")})
    assert len(outputs(graphs.feed(fed([*final, *final])))) == 2


def test_offsets_are_held_for_history_until_the_run_ends() -> None:
    going, ending = windows(12, "going"), windows(3, "ending", final=True)
    graphs = stage({name: topology(LAYERS, name) for name in ("going", "ending")})
    log = fed([*ending[:2], *going, ending[2]])
    graphs.feed(log[:2])
    assert graphs.open_offsets() == {WINDOWS.name: 0}
    graphs.feed(log[2:14])
    assert graphs.open_offsets() == {WINDOWS.name: 0}  # the slow run's
    (last,) = outputs(graphs.feed(log[14:]))
    assert last.record.final
    assert graphs.open_offsets() == {WINDOWS.name: 14 - HISTORY_WINDOWS}


def test_an_idle_run_keeps_no_offset_beyond_the_reach_of_history() -> None:
    silent, going = windows(3, "silent"), windows(40, "going")
    topologies = {name: topology(LAYERS, name) for name in ("going", "silent")}
    graphs = stage(topologies, history_stretch=20)
    log = fed([*silent[:2], *going, silent[2]])
    graphs.feed(log[:20])
    assert graphs.open_offsets() == {WINDOWS.name: 0}
    graphs.feed(log[20:42])
    assert graphs.open_offsets() == {WINDOWS.name: 34}
    assert list(graphs._runs) == ["going"]
    (back,) = outputs(graphs.feed(log[42:]))
    assert back.record == build_graph(silent[2], topologies["silent"], [])


def test_history_reaches_a_number_of_offsets_back_from_each_window() -> None:
    one, other = windows(4, "one"), windows(10, "other")
    topologies = {name: topology(LAYERS, name) for name in ("one", "other")}
    graphs = stage(topologies, history_stretch=5)
    log = fed([*one[:2], *other[:3], one[2], *other[3:], one[3]])
    produced = {output.source.offset: output.record for output in outputs(graphs.feed(log)) if output.source}
    assert produced[5] == build_graph(one[2], topologies["one"], one[:2])
    assert produced[13] == build_graph(one[3], topologies["one"], [])


def test_a_topology_that_changes_gives_no_second_graph() -> None:
    log = fed(windows(4))
    before = outputs(stage({"run": topology(LAYERS)}).feed(log[:3]))
    again = stage({"run": topology([*LAYERS, "c"])})
    again.restore(prior_outputs(before))
    assert [one.source.offset for one in outputs(again.feed(log)) if one.source] == [3]


def test_a_window_with_a_graph_is_not_held_if_its_topology_is_gone() -> None:
    log = fed(windows(3))
    before = outputs(stage({"run": topology(LAYERS)}).feed(log))
    again = stage({})
    again.restore(prior_outputs(before))
    assert not again.feed(log)
    assert not again.tick(0)
    assert not again.tick(10**9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([6, 1_000]))
def test_a_restart_at_any_moment_changes_nothing(seed: int, reach: int) -> None:
    rng = random.Random(seed)
    runs = {name: made[: rng.randint(1, 20)] for name, made in MADE.items()} | {"ended": MADE["ended"]}
    topologies: dict[str, Any] = {name: topology(LAYERS, name) for name in runs}
    heads = [name for name, run in runs.items() for _ in run]
    rng.shuffle(heads)
    iterators = {name: iter(run) for name, run in runs.items()}
    log = [next(iterators[name]) for name in heads]
    for _ in range(4):  # the stage before may publish a window twice
        original = rng.randrange(len(log))
        log.insert(rng.randint(original + 1, len(log)), log[original])
    strange = windows(1, "strange", ["x"])[0]
    log.insert(rng.randrange(len(log)), strange)
    topologies["strange"] = topology(LAYERS, "strange")
    inputs = fed(log)

    def make() -> GraphsStage:
        return stage(topologies, history_stretch=reach)

    expected = without_crashes(make(), inputs)
    crashed = with_crashes(make, inputs, rng)
    once = {one.identity: encode(one.record) for one in outputs(crashed)}
    assert len(once) == len(outputs(crashed)), "a graph was published twice"
    assert once == {one.identity: encode(one.record) for one in outputs(expected)}
    assert {one.source.offset for one in rejects(crashed)} == {one.source.offset for one in rejects(expected)}


MADE = {name: windows(20, name) for name in ("one", "two")} | {"ended": windows(10, "ended", final=True)}
