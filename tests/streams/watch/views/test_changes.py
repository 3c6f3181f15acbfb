"""Changes, merged by the rules of the page, show what the whole document shows: for any log, in any order."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tamiyo.schemas.adaptation import ControlCommand
from tamiyo.schemas.record import Record
from tamiyo.streams.watch import views
from tamiyo.streams.watch.history import History, Observed
from tamiyo.streams.watch.history import layers as layer_bounds
from tamiyo.streams.watch.history import runs as run_bounds
from tests.streams.watch import watched
from tests.streams.watch.views.merged import comparable, merged
from tests.support.factories import make_graph, make_topology, make_window

RUNS = ("run-1", "run-2")


def _log() -> list[Record]:
    """Return records of every kind that a view shows, of two runs."""
    found: list[Record] = []
    for run_id in RUNS:
        network = make_topology(2, run_id=run_id)
        found.append(network)
        for step in range(0, 300, 20):
            found.append(watched.performance(step, run_id=run_id, final=step == 280))
            found.append(watched.layer_health(step, run_id=run_id, growth_score=[0.1 if step % 60 == 0 else None, 0.2]))
        found += [make_window(index, layers=["layer.0", "layer.1"], run_id=run_id) for index in range(6)]
        graph = make_graph(topology=network)
        found += [graph.model_copy(update={"step": 50 * index + 40}) for index in range(6)]
        for number in range(4):
            asked = watched.decision(f"{run_id}-{number}", 50 * number + 40, run_id=run_id)
            found += [asked, watched.kernel(asked), watched.outcome(asked)]
            found += [watched.reward(asked, revision, 0.1 * revision) for revision in range(3)]
        found += [watched.error(60, run_id=run_id), watched.error(90, run_id=run_id, strategy="unload")]
        found.append(ControlCommand(run_id=run_id, time_ms=5, paused=True))
    found += [watched.checkpoint(0), watched.checkpoint(1, metrics={"losses/total": 0.5, "gates/finite": 1.0})]
    found.append(ControlCommand(run_id="*", time_ms=6, dry_run=True))
    return found


LOG = [
    Observed.of(record, 10_000 + place, key=getattr(record, "run_id", "tamiyo")) for place, record in enumerate(_log())
]


def documents(history: History, after: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Return the documents of all views, by name, after revisions by name."""
    found = {
        "fleet": views.fleet(history, after=after.get("fleet", 0)),
        "policy": views.policy(history, after=after.get("policy", 0)),
    }
    for run_id in RUNS:
        if run_id in history.runs:
            found[run_id] = views.run(history, run_id, after=after.get(run_id, 0))
    return found


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_bounds, "MAX_POINTS", 8)
    monkeypatch.setattr(layer_bounds, "MAX_FRAMES", 4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.one_of(st.just(list(range(len(LOG)))), st.permutations(range(len(LOG)))),
    cuts=st.lists(st.integers(0, len(LOG)), min_size=1, max_size=6),
)
def test_merged_changes_equal_the_whole(order: list[int], cuts: list[int]) -> None:
    history = watched.history()
    states: dict[str, Any] = {}
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(LOG)], strict=True):
        history.take(LOG[place] for place in order[begin:end])
        after = {name: state["revision"] for name, state in states.items()}
        for name, document in documents(history, after).items():
            states[name] = merged(states.get(name), document)
    for name, whole in documents(history, {}).items():
        assert comparable(states[name]) == comparable(whole), name


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(len(LOG))))
def test_the_order_of_topics_does_not_matter(order: list[int]) -> None:
    one, other = watched.history(), watched.history()
    one.take(LOG)
    other.take(LOG[place] for place in order)
    for run_id in RUNS:
        ours, theirs = views.run(one, run_id), views.run(other, run_id)
        for name in ("run", "kernels", "topology"):
            assert sorted(map(str, ours[name])) == sorted(map(str, theirs[name])), name
        assert ours["decisions"] == theirs["decisions"]
        assert ours["run"]["worth"] == pytest.approx(theirs["run"]["worth"])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(LOG)))
def test_a_past_time_shows_what_was_known_then(count: int) -> None:
    then, now = watched.history(), watched.history()
    then.take(LOG[:count])
    now.take(LOG)
    at_ms = 10_000 + count - 1
    before = {row["run_id"]: row for row in views.fleet(then)["runs"]}
    after = {row["run_id"]: row for row in views.fleet(now, at_ms=at_ms)["runs"]}
    assert before.keys() == after.keys()
    names = ("decisions", "adaptations", "vetoed", "last_reward", "last_worth", "last_adaptation")
    for run_id, row in before.items():
        assert {name: row[name] for name in names} == {name: after[run_id][name] for name in names}
        assert row["worth"] == pytest.approx(after[run_id]["worth"])
        known, shown = views.run(then, run_id), views.run(now, run_id, at_ms=at_ms)
        for name in ("decisions", "kernels", "errors"):
            assert known[name] == shown[name], name
    # Decisions may be known before the policy that made them.
    policies = [views.policy(each, at_ms=at_ms)["policies"] for each in (then, now)]
    assert [policy["versions"] for policy in policies[0]] == [policy["versions"] for policy in policies[1]]


def test_measurements_that_come_after_their_graph_are_shown() -> None:
    history = watched.history()
    graph = make_graph(topology=make_topology(2))
    history.take(Observed.of(graph.model_copy(update={"step": step}), step) for step in (40, 90))
    state = merged(None, views.run(history, "run-1"))
    history.take([Observed.of(watched.layer_health(30), 100)])
    state = merged(state, views.run(history, "run-1", after=state["revision"]))
    assert state["heat"]["gradient_norm"] == [[0.5, 0.5], [0.5, 0.5]]
