from typing import Any

import pytest

from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, OutcomeStatus, Veto
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.identity import outcome_id
from tamiyo.schemas.topics import GRAPHS, OUTCOMES
from tamiyo.streams.stages.decisions.history import INTERVAL, History
from tests.streams.stages.decisions.bench import graph
from tests.streams.stages.rewards.runs import decide


def record(history: History, index: int, kind: str = "no_op", *, interval: int = 1, **fields: Any) -> ModelGraph:
    """Record the decision on window `index`, at step 50 * index + 40 and offset `index`."""
    decided = graph(index)
    decision: AdaptationDecision = decide(decided, kind, **fields)
    history.record(decided, index, decision, interval=interval, keep_steps=500)
    return decided


def outcome(index: int, status: OutcomeStatus) -> AdaptationOutcome:
    name = decide(graph(index)).decision_id
    return AdaptationOutcome(
        run_id="run-1",
        outcome_id=outcome_id(name),
        decision_id=name,
        step=0,
        time_ms=0,
        type="load_kernel",
        status=status,
    )


def test_an_adaptation_counts_from_its_step() -> None:
    history = History()
    record(history, 1)
    assert history.steps_since(graph(2)) is None
    record(history, 2, "load_kernel")
    record(history, 4, "load_kernel")
    assert history.steps_since(graph(7)) == 150
    assert history.recent(graph(7), 250) == 1
    assert history.recent(graph(7), 251) == 2


def test_a_dry_run_is_no_adaptation() -> None:
    history = History()
    record(history, 2, "load_kernel", dry_run=True)
    assert history.adaptations == []


@pytest.mark.parametrize("status", [OutcomeStatus.REFUSED, OutcomeStatus.FAILED])
def test_a_refused_adaptation_counts_no_longer(status: OutcomeStatus) -> None:
    history = History()
    record(history, 2, "load_kernel")
    history.record_outcome(outcome(2, status), 7)
    assert history.steps_since(graph(3)) is None
    assert history.recent(graph(3), 1000) == 0
    assert history.in_flight(graph(3), 300) is None


def test_the_first_outcome_counts_and_its_offset_is_held() -> None:
    history = History()
    record(history, 2, "load_kernel")
    history.record_outcome(outcome(1, OutcomeStatus.REFUSED), 6)
    assert list(history.offsets()) == [(GRAPHS.name, 2)]
    history.record_outcome(outcome(2, OutcomeStatus.EXECUTED), 7)
    history.record_outcome(outcome(2, OutcomeStatus.REFUSED), 8)
    assert history.recent(graph(3), 1000) == 1
    assert list(history.offsets()) == [(GRAPHS.name, 2), (OUTCOMES.name, 7)]


def test_an_adaptation_is_in_flight_until_it_is_executed_or_overdue() -> None:
    history = History()
    decided = record(history, 2, "load_kernel")
    assert history.in_flight(graph(3), 300) == history.adaptations[-1]
    executed_before = graph(3).step - decided.step + 1
    assert history.in_flight(graph(3, steps_since_adaptation=executed_before), 300) is not None
    assert history.in_flight(graph(3, steps_since_adaptation=executed_before - 1), 300) is None
    assert history.in_flight(graph(7), 251) is not None
    assert history.in_flight(graph(7), 250) is None


def test_old_adaptations_are_dropped() -> None:
    history = History()
    record(history, 2, "load_kernel")
    record(history, 11)
    assert len(history.adaptations) == 1  # 450 steps ago, of 500 kept
    record(history, 12)
    assert history.adaptations == []
    assert list(history.offsets()) == []


def test_every_nth_window_is_due() -> None:
    history = History()
    skipped = [Veto(by=INTERVAL, reason="only every 3rd window")]
    due = []
    for index in range(7):
        due.append(history.due(3))
        record(history, index, interval=3, vetoes=[] if due[-1] else skipped)
    assert due == [True, False, False, True, False, False, True]
    assert list(history.offsets()) == [(GRAPHS.name, 6)]
