from typing import Any

from tamiyo.schemas.adaptation import OutcomeStatus
from tamiyo.schemas.topics import DECISIONS, GRAPHS, OUTCOMES
from tamiyo.streams.stages.base import Incoming, PriorOutput
from tamiyo.streams.stages.decisions.restored import RestoredDecisions
from tests.streams.stages.decisions.bench import graph
from tests.streams.stages.rewards.runs import decide, outcome_of

FIRST, SECOND = (decide(graph(index), "load_kernel") for index in range(2))


def prior(decision: Any, graph_offset: int | None) -> PriorOutput:
    sources = {} if graph_offset is None else {GRAPHS.name: graph_offset}
    return PriorOutput(DECISIONS.name, 0, decision, decision.decision_id, sources)


def restored(*outputs: PriorOutput) -> RestoredDecisions:
    decisions = RestoredDecisions()
    decisions.add(outputs)
    return decisions


def outcome(decision: Any, offset: int) -> Incoming:
    return Incoming(OUTCOMES.name, 0, offset, 0, outcome_of(decision, OutcomeStatus.REFUSED))


def test_a_decision_is_taken_once() -> None:
    decisions = restored(prior(FIRST, 3), prior(SECOND, 4))
    assert decisions.pop(FIRST.decision_id) == (FIRST, None)
    assert decisions.pop(FIRST.decision_id) is None
    assert decisions.pop(SECOND.decision_id) == (SECOND, None)


def test_the_first_decision_under_an_id_counts() -> None:
    other = FIRST.model_copy(update={"policy_version": 9})
    assert restored(prior(FIRST, 3), prior(other, 3)).pop(FIRST.decision_id) == (FIRST, None)


def test_an_outcome_is_held_for_its_decision() -> None:
    decisions = restored(prior(FIRST, 3))
    assert decisions.hold_outcome(outcome(FIRST, 7))
    assert not decisions.hold_outcome(outcome(SECOND, 8))
    assert decisions.outcome_offsets() == [7]
    assert decisions.pop(FIRST.decision_id) == (FIRST, outcome(FIRST, 7))
    assert decisions.outcome_offsets() == []


def test_decisions_on_graphs_that_are_not_read_again_are_dropped_with_their_outcomes() -> None:
    decisions = restored(prior(FIRST, 3), prior(SECOND, 4))
    decisions.hold_outcome(outcome(FIRST, 7))
    decisions.drop_below(3)
    assert decisions.outcome_offsets() == [7]
    decisions.drop_below(4)
    assert decisions.outcome_offsets() == []
    assert decisions.pop(FIRST.decision_id) is None
    assert decisions.pop(SECOND.decision_id) == (SECOND, None)


def test_a_decision_without_its_graphs_offset_is_never_dropped() -> None:
    decisions = restored(prior(FIRST, None))
    decisions.drop_below(10**12)
    assert decisions.pop(FIRST.decision_id) == (FIRST, None)
