from typing import Any

from tamiyo.schemas.topics import DECISIONS, GRAPHS, OUTCOMES, WINDOWS, Topic
from tamiyo.streams.stages.base import Incoming
from tamiyo.streams.stages.rewards.run_state import Run
from tests.streams.stages.rewards.runs import decide, graph_of, outcome_of, window


def incoming(topic: Topic, record: Any, offset: int = 0) -> Incoming:
    return Incoming(topic.name, 0, offset, 0, record)


def run_of(windows: int, *, loads: tuple[int, ...] = ()) -> Run:
    """Return a run that was read whole; the decisions on the windows `loads` were executed and are pending."""
    run = Run()
    for index in range(windows):
        graph = graph_of(window(index))
        decision = decide(graph, "load_kernel" if index in loads else "no_op")
        run.add_window(incoming(WINDOWS, window(index), index))
        run.add_graph(incoming(GRAPHS, graph, index), completed=False)
        run.add_decision(incoming(DECISIONS, decision, index), completed=index not in loads)
        if index in loads:
            outcome = outcome_of(decision, step=decision.step)
            run.add_outcome(incoming(OUTCOMES, outcome, index), completed=False)
    return run


def test_a_repeated_window_is_ignored() -> None:
    run = run_of(3)
    run.add_window(incoming(WINDOWS, window(2), 9))
    run.add_window(incoming(WINDOWS, window(1), 9))
    assert [each.offset for each in run.windows] == [0, 1, 2]


def test_records_are_joined_in_any_order() -> None:
    graph = graph_of(window(0))
    decision = decide(graph, "load_kernel")
    run = Run()
    run.add_outcome(incoming(OUTCOMES, outcome_of(decision)), completed=False)
    run.add_graph(incoming(GRAPHS, graph), completed=False)
    assert not run.pending
    run.add_decision(incoming(DECISIONS, decision), completed=False)
    (pending,) = run.pending.values()
    assert pending.graph is not None
    assert pending.outcome is not None
    assert not run.graphs
    assert not run.outcomes


def test_the_first_outcome_counts() -> None:
    run = run_of(2, loads=(1,))
    (pending,) = run.pending.values()
    first = pending.outcome
    run.add_outcome(incoming(OUTCOMES, outcome_of(pending.decision, step=999), 9), completed=False)
    assert pending.outcome is first


def test_a_graph_whose_decision_was_read_is_not_kept() -> None:
    run = run_of(3)
    assert not run.graphs
    for index in range(3):
        run.add_graph(incoming(GRAPHS, graph_of(window(index))), completed=False)
    assert not run.graphs
    run.add_graph(incoming(GRAPHS, graph_of(window(3))), completed=False)
    assert len(run.graphs) == 1


def test_later_adaptations_are_others_at_or_after_the_adaptation_in_order() -> None:
    run = run_of(8, loads=(2, 4, 6))
    second = run.pending[list(run.pending)[1]].decision

    def later(name: str, at: float) -> list[float]:
        return [position for position, _ in run.later_adaptations(name, at)]

    assert later(second.decision_id, second.step) == [6 * 50 + 40]
    assert later("another", second.step) == [second.step, 6 * 50 + 40]
    assert later("another", 6 * 50 + 41) == []


def test_windows_before_the_baseline_of_the_oldest_pending_decision_are_dropped() -> None:
    run = run_of(20, loads=(10,))
    run.trim(baseline_windows=3, max_held=5000)
    # The decision of step 540 needs the three windows that end at or before it, the last at 500.
    assert [each.end for each in run.windows[:3]] == [400, 450, 500]
    run.pending.clear()
    run.trim(baseline_windows=3, max_held=5000)
    assert run.windows[0].offset == 16
    assert not run.executed


def test_an_adaptation_at_the_oldest_pending_decision_is_kept() -> None:
    run = run_of(20, loads=(10, 15))
    run.trim(baseline_windows=3, max_held=5000)
    assert len(run.executed) == 2
    del run.pending[next(iter(run.pending))]
    run.trim(baseline_windows=3, max_held=5000)
    assert list(run.executed) == list(run.pending)


def test_what_is_held_is_bounded() -> None:
    run = run_of(20, loads=(0,))
    run.trim(baseline_windows=3, max_held=10)
    assert [each.offset for each in run.windows] == list(range(10, 20))


def test_open_offsets_are_those_of_every_record_held() -> None:
    run = run_of(6, loads=(3,))
    run.trim(baseline_windows=2, max_held=5000)
    assert set(run.offsets()) == {(WINDOWS.name, 1), (GRAPHS.name, 3), (DECISIONS.name, 3), (OUTCOMES.name, 3)}
