"""Graphs: the join of windows and topologies."""

from collections.abc import Sequence
from typing import Any

import pytest

from tamiyo.models.graph import HISTORY_WINDOWS, build_graph
from tamiyo.schemas.analysis import HealthWindow, ModelGraph
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import RecordError
from tamiyo.schemas.identity import graph_id
from tamiyo.schemas.telemetry import ModelTopology
from tamiyo.schemas.topics import WINDOWS
from tests.streams.stages.graphs.runs import LAYERS, fed, stage, windows
from tests.support.telemetry import outputs, rejects, topology


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


def test_the_next_wait_for_a_topology_lasts_as_long_as_the_first() -> None:
    graphs = stage({}, topology_timeout_s=60)
    log = fed(windows(2))
    graphs.feed(log[:1])
    graphs.tick(0)
    assert len(rejects(graphs.tick(60_000))) == 1
    graphs.feed(log[1:])
    assert not graphs.tick(61_000)
    assert not graphs.tick(120_999)
    assert [each.source for each in rejects(graphs.tick(121_000))] == log[1:]
