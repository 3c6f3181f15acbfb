"""What the rewards stage holds of one run: its windows, and the decisions whose worth is not yet known."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, DecisionType, OutcomeStatus
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.topics import DECISIONS, GRAPHS, OUTCOMES, WINDOWS
from tamiyo.streams.stages.base import Incoming
from tamiyo.streams.stages.idle_timer import IdleTimer
from tamiyo.streams.stages.rewards.window_summary import WindowSummary


@dataclass(slots=True)
class Pending:
    """A decision with what has come for it so far."""

    decision: AdaptationDecision
    source: Incoming
    graph: Incoming | None = None
    outcome: Incoming | None = None
    closed: int = 0
    """Spans that have been judged; also the next revision."""

    @property
    def executable(self) -> bool:
        """Whether a host was asked to do something."""
        return self.decision.type != DecisionType.NO_OP and not self.decision.dry_run


@dataclass(slots=True)
class Run:
    """Everything held of one run. Dictionaries are keyed by decision id."""

    windows: list[WindowSummary] = field(default_factory=list)
    graphs: dict[str, Incoming] = field(default_factory=dict)
    """Waiting for their decision."""
    outcomes: dict[str, Incoming] = field(default_factory=dict)
    """Waiting for their decision."""
    pending: dict[str, Pending] = field(default_factory=dict)
    executed: dict[str, Incoming] = field(default_factory=dict)
    """Outcomes that changed the network: another adaptation's gain is not a decision's own."""
    clock: str | None = None
    """Known with the first window."""
    answered: tuple[int, int] = (0, 0)
    """Step and event time of the newest decision that was read; a run's decisions lie in the order of its graphs."""
    ended: bool = False
    final_answered: bool = False
    """Whether the decision for the run's last graph came: then nothing more will."""
    silence: IdleTimer = field(default_factory=IdleTimer)

    def position(self, record: AdaptationDecision | AdaptationOutcome | ModelGraph) -> float:
        """Return where a record stands on the run's clock."""
        return float(record.time_ms if self.clock == "time" else record.step)

    @property
    def now(self) -> float:
        """The end of the newest window on the run's clock."""
        return self.windows[-1].end if self.windows else 0.0

    def next_adaptation_at(self, decision_id: str, effective_at: float) -> float:
        """Return the clock value of the next executed adaptation after `effective_at`, infinity where there is none."""
        later = [
            position
            for other, outcome in self.executed.items()
            if other != decision_id and (position := self.position(outcome.record)) >= effective_at
        ]
        return min(later, default=float("inf"))

    def answer(self, decision: AdaptationDecision) -> None:
        """Note that `decision` was read. Decisions on graphs before it lie before it, or are not read again.

        Only the decisions' own order tells that. After a restart graphs are read again beside it: that a later graph
        was decided does not mean that the decision on an earlier one has been read.
        """
        self.answered = max(self.answered, (decision.step, decision.time_ms))
        self.graphs = {name: waiting for name, waiting in self.graphs.items() if not self.is_answered(waiting.record)}

    def is_answered(self, graph: ModelGraph) -> bool:
        """Return whether the decision on `graph` has been read, or will not be."""
        return (graph.step, graph.time_ms) <= self.answered

    def trim(self, baseline_windows: int, max_held: int) -> None:
        """Let go of what no decision, present or to come, needs any more."""
        if self.clock is not None:
            floor = min(
                (
                    float(self.answered[self.clock == "time"]),
                    *(self.position(p.decision) for p in self.pending.values()),
                )
            )
            before = sum(window.end <= floor for window in self.windows)
            del self.windows[: max(0, before - baseline_windows, len(self.windows) - max_held)]
            self.executed = {
                name: outcome for name, outcome in self.executed.items() if self.position(outcome.record) >= floor
            }
        for waiting in (self.graphs, self.outcomes, self.executed):
            while len(waiting) > max_held:
                del waiting[next(iter(waiting))]

    @property
    def empty(self) -> bool:
        """Whether no decision is open and nothing waits for one."""
        return not (self.graphs or self.outcomes or self.pending)

    def offsets(self) -> Iterator[tuple[str, int]]:
        """Yield topic and offset of what is held; of windows the lowest only."""
        if self.windows:
            yield WINDOWS.name, self.windows[0].offset
        for graph in self.graphs.values():
            yield GRAPHS.name, graph.offset
        for outcome in (*self.outcomes.values(), *self.executed.values()):
            yield OUTCOMES.name, outcome.offset
        for pending in self.pending.values():
            yield DECISIONS.name, pending.source.offset
            if pending.graph is not None:
                yield GRAPHS.name, pending.graph.offset
            if pending.outcome is not None:
                yield OUTCOMES.name, pending.outcome.offset


def parameters_added(decision: AdaptationDecision, graph: ModelGraph, outcome: AdaptationOutcome) -> int:
    """Return the change in parameters: as the host measured it, else as the graph offered it, else 0."""
    if "parameters" in outcome.before and "parameters" in outcome.after:
        return round(outcome.after["parameters"] - outcome.before["parameters"])
    if decision.type == DecisionType.LOAD_KERNEL and decision.layer_id in graph.layer_id:
        for offer in graph.offers[graph.layer_id.index(decision.layer_id)]:
            if offer.name == decision.blueprint:
                return offer.parameters
    return 0


def is_executed(outcome: AdaptationOutcome) -> bool:
    """Return whether the host did what it was asked."""
    return outcome.status == OutcomeStatus.EXECUTED
