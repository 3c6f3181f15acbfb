"""Graphs: the windows before, which repeats do not enter and a restart reads again."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo.models.graph import HISTORY_WINDOWS, build_graph
from tamiyo.schemas.codec import encode
from tamiyo.schemas.topics import WINDOWS
from tamiyo.streams.stages.base import PriorOutput
from tamiyo.streams.stages.graphs import stage as graphs_stage
from tamiyo.streams.stages.graphs.stage import GraphsStage
from tests.streams.stages.graphs.runs import LAYERS, fed, stage, windows
from tests.support.restarts import with_crashes, without_crashes
from tests.support.telemetry import outputs, partition, prior_outputs, rejects, topology

MADE = {name: windows(20, name) for name in ("one", "two")} | {"ended": windows(10, "ended", final=True)}
MADE_GRAPH = build_graph(MADE["one"][0], topology(LAYERS, "one"), [])


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
    idle, going = windows(3, "idle"), windows(40, "going")
    topologies = {name: topology(LAYERS, name) for name in ("going", "idle")}
    graphs = stage(topologies, history_stretch=20)
    log = fed([*idle[:2], *going, idle[2]])
    graphs.feed(log[:20])
    assert graphs.open_offsets() == {WINDOWS.name: 0}
    graphs.feed(log[20:42])
    assert graphs.open_offsets() == {WINDOWS.name: 34}
    assert list(graphs._runs) == ["going"]
    (back,) = outputs(graphs.feed(log[42:]))
    assert back.record == build_graph(idle[2], topologies["idle"], [])


def test_history_reaches_a_number_of_offsets_back_from_each_window() -> None:
    one, other = windows(4, "one"), windows(10, "other")
    topologies = {name: topology(LAYERS, name) for name in ("one", "other")}
    graphs = stage(topologies, history_stretch=5)
    log = fed([*one[:2], *other[:3], one[2], *other[3:], one[3]])
    produced = {output.source.offset: output.record for output in outputs(graphs.feed(log)) if output.source}
    assert produced[5] == build_graph(one[2], topologies["one"], one[:2])
    assert produced[13] == build_graph(one[3], topologies["one"], [])
    log = fed([one[0], *other[:3], one[1], other[3], one[2]])
    last = outputs(stage(topologies, history_stretch=5).feed(log))[-1]
    assert last.record == build_graph(one[2], topologies["one"], one[1:2])


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


def test_a_repeated_window_without_a_graph_is_dropped() -> None:
    log = windows(3)
    topologies: dict[str, Any] = {}
    graphs = stage(topologies)
    assert not graphs.feed(fed([log[0], log[0], log[1], log[0]]))  # held
    assert graphs.counts["repeated"] == 2
    topologies["run"] = topology(LAYERS)
    first, second, third = outputs(graphs.feed([*partition(log[2:], WINDOWS.name, first=4)]))
    assert [each.source.offset for each in (first, second, third) if each.source] == [0, 2, 4]
    assert third.record == build_graph(log[2], topologies["run"], log[:2])
    wrong = windows(1, layers=["x"])
    graphs = stage(topologies)
    assert len(rejects(graphs.feed(fed([*wrong, *wrong])))) == 1


def test_a_window_older_than_the_newest_of_its_run_is_dropped() -> None:
    log = windows(4)
    known = topology(LAYERS)
    produced = outputs(stage({"run": known}).feed(fed([log[0], log[2], log[1], log[3]])))
    assert [each.source.offset for each in produced if each.source] == [0, 1, 3]
    assert produced[2].record == build_graph(log[3], known, [log[0], log[2]])


def test_a_repeat_is_recognised_after_its_run_was_dropped_and_is_no_history() -> None:
    one, other = windows(3, "one"), windows(7, "other")
    topologies = {name: topology(LAYERS, name) for name in ("one", "other")}
    graphs = stage(topologies, history_stretch=5)
    produced = outputs(graphs.feed(fed([*one[:2], *other, one[1], one[2]])))
    assert graphs.counts["repeated"] == 1
    assert [each.source.offset for each in produced if each.source] == [*range(9), 10]
    assert produced[-1].record == build_graph(one[2], topologies["one"], [])


def test_a_run_whose_windows_change_their_width_starts_anew() -> None:
    log = windows(3)
    wide = [
        log[number].model_copy(update={"start": 100 * number, "end": 100 * number + 100, "window_id": f"{number:032x}"})
        for number in (0, 1)
    ]
    known = topology(LAYERS)
    graphs = stage({"run": known})
    produced = outputs(graphs.feed(fed([*log, *wide, log[2]])))
    assert [each.source.offset for each in produced if each.source] == [0, 1, 2, 3, 4]
    assert produced[3].record == build_graph(wide[0], known, [])
    assert produced[4].record == build_graph(wide[1], known, wide[:1])
    assert graphs.counts["repeated"] == 1


def test_a_published_window_behind_a_held_one_waits_its_turn_and_gets_no_second_graph() -> None:
    log = windows(3)
    known = topology(LAYERS)
    published = outputs(stage({"run": known}).feed(fed(log[:2])))[1]
    topologies: dict[str, Any] = {}
    graphs = stage(topologies)
    graphs.restore([PriorOutput(published.topic.name, 0, published.record, published.identity)])
    assert not graphs.feed(fed(log[:2]))
    assert graphs.open_offsets() == {WINDOWS.name: 0}
    topologies["run"] = known
    (first,) = outputs(graphs.tick(0))
    assert first.record == build_graph(log[0], known, [])
    (third,) = outputs(graphs.feed(fed(log)[2:]))
    assert third.record == build_graph(log[2], known, log[:2])


@pytest.mark.parametrize("order", [[0, 2], [2, 0]])
def test_a_window_rejected_before_a_restart_gets_no_graph_after_it(order: list[int]) -> None:
    log = windows(4)
    topologies: dict[str, Any] = {}
    before = stage(topologies, max_held=1)
    topologies["run"] = topology(LAYERS)
    published = outputs(before.feed(fed(log)[:1]))
    del topologies["run"]
    assert [each.source.offset for each in rejects(before.feed(fed(log)[1:3]))] == [1]
    topologies["run"] = topology(LAYERS)
    published += outputs(before.tick(0))
    prior = prior_outputs(published)
    again = stage(topologies)
    # A worker that lost the partition may publish after its successor: the last output need not be of the last window.
    again.restore(sorted(prior, key=lambda output: order.index(output.sources[WINDOWS.name])))
    (last,) = outputs(again.feed(fed(log)))
    assert last.record == build_graph(log[3], topologies["run"], log[:3])


def test_a_held_window_keeps_its_run_and_its_history() -> None:
    one, other = windows(3, "one"), windows(10, "other")
    topologies: dict[str, Any] = {name: topology(LAYERS, name) for name in ("one", "other")}
    graphs = stage(topologies, history_stretch=5)
    log = fed([*one, *other])
    graphs.feed(log[:2])
    known = topologies.pop("one")
    graphs.feed(log[2:])
    assert graphs.open_offsets() == {WINDOWS.name: 0}
    topologies["one"] = known
    (held,) = outputs(graphs.tick(0))
    assert held.record == build_graph(one[2], known, one[:2])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30))
def test_the_offset_needed_is_that_of_the_oldest_history_a_next_window_may_have(seed: int, reach: int) -> None:
    rng = random.Random(seed)
    graphs = stage(
        {name: topology(LAYERS, name) for name in MADE}, lambda window, *_: MADE_GRAPH, history_stretch=reach
    )
    iterators = {name: iter(run) for name, run in MADE.items()}
    histories: dict[str, list[int]] = {}
    for offset in range(40):
        window = next(iterators[rng.choice(list(MADE))], None) or next(iterators["one"], None)
        if window is None:
            break
        graphs.feed(partition([window], WINDOWS.name, first=offset))
        histories.setdefault(window.run_id, []).append(offset)
        if window.final:
            del histories[window.run_id]
        needed = [at for past in histories.values() for at in past[-HISTORY_WINDOWS:] if at >= offset + 1 - reach]
        assert graphs.open_offsets() == ({WINDOWS.name: min(needed)} if needed else {})


def test_what_is_remembered_of_published_graphs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_stage, "MAX_PUBLISHED", 3)
    one, other = windows(2, "one"), windows(8, "other")
    topologies = {name: topology(LAYERS, name) for name in ("one", "other")}
    log = fed([*one, *other])
    published = outputs(stage(topologies).feed(log[:2]))
    graphs = stage(topologies, history_stretch=5)
    graphs.restore(prior_outputs(published))
    graphs.feed(log)
    assert list(graphs._published) == [window.window_id for window in other[-3:]]
    assert graphs._published_until == {}


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
