"""What the decisions stage remembers of one run: its latest adaptations.

All of it can be derived again from the run's graphs since the oldest of them and the decisions published for these, so
the offsets of those graphs are held open.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, DecisionType, OutcomeStatus
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.topics import GRAPHS, OUTCOMES
from tamiyo.streams.stages.idle_timer import IdleTimer

INTERVAL = "interval"
"""The `by` of the veto on windows between two that may bring an adaptation."""


@dataclass(slots=True)
class Adaptation:
    """A decision that a host is to execute."""

    decision_id: str
    step: int
    graph_offset: int
    outcome_offset: int | None = None
    refused: bool = False
    """Whether the host reported that it was refused or failed."""


@dataclass(slots=True)
class History:
    """The latest adaptations of one run, oldest first."""

    adaptations: list[Adaptation] = field(default_factory=list)
    since_considered: int | None = None
    """Windows since the last that might have brought an adaptation; None before the first."""
    considered_offset: int | None = None
    """Offset of that window's graph."""
    idle_timer: IdleTimer = field(default_factory=IdleTimer)

    def due(self, interval: int) -> bool:
        """Return whether the run's next window may bring an adaptation."""
        return self.since_considered is None or self.since_considered + 1 >= interval

    def record(
        self, graph: ModelGraph, offset: int, decision: AdaptationDecision, *, interval: int, keep_steps: int
    ) -> None:
        """Record a decision.

        Args:
            graph: The graph it was made on.
            offset: The graph's offset.
            decision: The decision.
            interval: Every n-th window may bring an adaptation.
            keep_steps: Adaptations more than so many steps before `graph` are dropped.
        """
        if any(veto.by == INTERVAL for veto in decision.vetoes):
            self.since_considered = (self.since_considered or 0) + 1
        else:
            self.since_considered = 0
            self.considered_offset = offset if interval > 1 else None
        if decision.type != DecisionType.NO_OP and not decision.dry_run:
            self.adaptations.append(Adaptation(decision.decision_id, graph.step, offset))
        self.adaptations = [each for each in self.adaptations if each.step > graph.step - keep_steps]

    def record_outcome(self, outcome: AdaptationOutcome, offset: int) -> None:
        """Record the first outcome of one of the adaptations; outcomes of others are ignored."""
        for each in self.adaptations:
            if each.decision_id == outcome.decision_id and each.outcome_offset is None:
                each.outcome_offset = offset
                each.refused = outcome.status != OutcomeStatus.EXECUTED

    def forget(self, decision_id: str) -> None:
        """Drop an adaptation that no host was sent."""
        self.adaptations = [each for each in self.adaptations if each.decision_id != decision_id]

    def steps_since(self, graph: ModelGraph) -> int | None:
        """Return the steps from the last adaptation that was not refused to `graph`; None if there was none."""
        steps = [graph.step - each.step for each in self.adaptations if not each.refused]
        return max(0, min(steps)) if steps else None

    def recent(self, graph: ModelGraph, steps: int) -> int:
        """Return how many adaptations that were not refused were decided in the `steps` before `graph`."""
        return sum(not each.refused and graph.step - each.step < steps for each in self.adaptations)

    def in_flight(self, graph: ModelGraph, steps: int) -> Adaptation | None:
        """Return the last adaptation if the run has not executed it yet and it is less than `steps` old."""
        if not self.adaptations:
            return None
        last = self.adaptations[-1]
        since = graph.steps_since_adaptation
        executed = since is not None and graph.step - since >= last.step
        return None if executed or last.refused or graph.step - last.step >= steps else last

    def offsets(self) -> Iterator[tuple[str, int]]:
        """Yield topic and offset of every record held open."""
        if self.considered_offset is not None:
            yield GRAPHS.name, self.considered_offset
        for each in self.adaptations:
            yield GRAPHS.name, each.graph_offset
            if each.outcome_offset is not None:
                yield OUTCOMES.name, each.outcome_offset
