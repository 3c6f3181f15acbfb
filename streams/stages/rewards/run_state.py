"""The state that the rewards stage keeps of one run: its windows, and the decisions whose reward is not final."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, OutcomeStatus
from tamiyo.schemas.analysis import HealthWindow, ModelGraph
from tamiyo.schemas.identity import decision_id
from tamiyo.schemas.topics import DECISIONS, GRAPHS, OUTCOMES, WINDOWS
from tamiyo.streams.stages.base import Incoming
from tamiyo.streams.stages.idle_timer import IdleTimer
from tamiyo.streams.stages.rewards.window_summary import WindowSummary


@dataclass(slots=True)
class Pending:
    """A decision, joined with the records that have arrived for it."""

    decision: AdaptationDecision
    source: Incoming
    graph: Incoming | None = None
    outcome: Incoming | None = None
    closed: int = 0
    """Spans that were closed; also the next revision."""


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
    """Outcomes that changed the network: the gain after a later adaptation is not one decision's alone."""
    clock: str | None = None
    """What the run is measured by, "step" or "time"; None until the first window."""
    task: str | None = None
    """What it trains; None until its topology is known."""
    decided_up_to: tuple[int, int] = (0, 0)
    """Step and event time of the newest decision that was read; a run's decisions are in the order of its graphs."""
    ended: bool = False
    final_decided: bool = False
    """Whether the decision on the run's last graph was read: no further record will come."""
    idle_timer: IdleTimer = field(default_factory=IdleTimer)

    def position(self, record: AdaptationDecision | AdaptationOutcome | ModelGraph) -> float:
        """Return a record's value of the run's clock: its step, or its event time in ms."""
        return float(record.time_ms if self.clock == "time" else record.step)

    @property
    def now(self) -> float:
        """The end of the newest window on the run's clock."""
        return self.windows[-1].end if self.windows else 0.0

    def later_adaptations(self, decision_id: str, effective_at: float) -> list[tuple[float, AdaptationOutcome]]:
        """Return clock value and outcome of the other adaptations executed at or after `effective_at`, in order."""
        others = [
            (self.position(each.record), each.record) for other, each in self.executed.items() if other != decision_id
        ]
        return sorted(((at, outcome) for at, outcome in others if at >= effective_at), key=lambda pair: pair[0])

    def add_window(self, incoming: Incoming) -> None:
        """Take a window; a repeated one is ignored."""
        window: HealthWindow = incoming.record
        if self.windows and window.start <= self.windows[-1].start:
            return
        self.clock = window.clock
        self.windows.append(WindowSummary.of(window, incoming.offset))
        self.ended = window.final

    def add_graph(self, incoming: Incoming, *, completed: bool) -> None:
        """Join a graph with its decision, or keep it until that is read; `completed`: it has its final reward."""
        graph: ModelGraph = incoming.record
        name = decision_id(graph.graph_id)
        pending = self.pending.get(name)
        if completed:
            self.final_decided |= graph.final
        elif pending is not None:
            self.final_decided |= graph.final
            pending.graph = pending.graph or incoming
        elif not self.is_decided(graph):
            self.graphs.setdefault(name, incoming)

    def add_decision(self, incoming: Incoming, *, completed: bool) -> None:
        """Join a decision with the graph and outcome read before it; a repeated or `completed` one is ignored."""
        decision: AdaptationDecision = incoming.record
        name = decision.decision_id
        graph = self.graphs.pop(name, None)
        self.mark_decided(decision)
        if graph is not None:
            self.final_decided |= graph.record.final
        if not completed and name not in self.pending:
            self.pending[name] = Pending(decision, incoming, graph, self.outcomes.pop(name, None))

    def add_outcome(self, incoming: Incoming, *, completed: bool) -> None:
        """Join an outcome with its decision, or keep it until that is read; the first outcome counts."""
        outcome: AdaptationOutcome = incoming.record
        name = outcome.decision_id
        if is_executed(outcome):
            self.executed.setdefault(name, incoming)
        if completed:
            return
        pending = self.pending.get(name)
        if pending is None:
            self.outcomes.setdefault(name, incoming)
        elif pending.outcome is None:
            pending.outcome = incoming

    def mark_decided(self, decision: AdaptationDecision) -> None:
        """Record that `decision` was read, and drop the graphs up to its own.

        Decisions are in the order of their graphs, so those on earlier graphs were read before it or are not read
        again. Graphs give no such order: after a restart they are read again independently of the decisions.
        """
        self.decided_up_to = max(self.decided_up_to, (decision.step, decision.time_ms))
        self.graphs = {name: waiting for name, waiting in self.graphs.items() if not self.is_decided(waiting.record)}

    def is_decided(self, graph: ModelGraph) -> bool:
        """Return whether the decision on `graph` has been read, or will not be."""
        return (graph.step, graph.time_ms) <= self.decided_up_to

    def trim(self, baseline_windows: int, max_held: int) -> None:
        """Drop what no present or future decision needs, and the oldest beyond `max_held` of each kind."""
        if self.clock is not None:
            floor = min(
                (
                    float(self.decided_up_to[self.clock == "time"]),
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
        """Whether no decision is pending and nothing waits for one."""
        return not (self.graphs or self.outcomes or self.pending)

    def offsets(self) -> Iterator[tuple[str, int]]:
        """Yield topic and offset of every record held; of the windows only the lowest."""
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


def is_executed(outcome: AdaptationOutcome) -> bool:
    """Return whether the host executed the decision."""
    return outcome.status == OutcomeStatus.EXECUTED
