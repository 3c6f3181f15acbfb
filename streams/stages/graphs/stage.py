"""Graphs: each window joined with its run's topology and the run's windows before it.

A window whose topology has not come yet is held, within bounds of number and time. What a graph needs besides its
window is a stretch of the log: the run's last windows. They hold the committed offset back, so a restart reads them
again and builds the same bytes; a graph that was published is not published again.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tamiyo.models.graph import HISTORY_WINDOWS, build_graph
from tamiyo.schemas.analysis import HealthWindow, ModelGraph
from tamiyo.schemas.errors import TamiyoError
from tamiyo.schemas.telemetry import ModelTopology
from tamiyo.schemas.topics import GRAPHS, TOPOLOGY, WINDOWS, Topic
from tamiyo.streams.settings import GraphSettings
from tamiyo.streams.stages.base import Incoming, Output, PriorOutput, Reject, Stage, View

Build = Callable[[HealthWindow, ModelTopology, Sequence[HealthWindow]], ModelGraph]

MAX_ANSWERED = 100_000  # windows known to have a graph; a restart re-reads far fewer


@dataclass(slots=True)
class _Run:
    kind: tuple[str, int]
    """Clock and width: a run whose windows are cut anew begins anew."""
    start: int = -1
    """Of the newest window."""
    offset: int = -1
    history: deque[Incoming] = field(default_factory=lambda: deque(maxlen=HISTORY_WINDOWS))
    held: deque[Incoming] = field(default_factory=deque)
    held_since_ms: int | None = None


class GraphsStage(Stage):
    """One partition of the log of windows."""

    name: ClassVar[str] = "graphs"
    inputs: ClassVar[tuple[Topic, ...]] = (WINDOWS,)
    outputs: ClassVar[tuple[Topic, ...]] = (GRAPHS,)
    views: ClassVar[tuple[Topic, ...]] = (TOPOLOGY,)

    def __init__(
        self, partition: int, settings: GraphSettings, views: Mapping[str, View[Any]], build: Build = build_graph
    ) -> None:
        self.partition = partition
        self.settings = settings
        self.counts: Counter[str] = Counter()
        """received, repeated, held and rejected windows; published graphs."""
        self._topologies: View[ModelTopology] = views[TOPOLOGY.name]
        self._build = build
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        """In the order of their newest window's offset."""
        self._waiting: OrderedDict[str, None] = OrderedDict()
        """Runs with held windows, the longest waiting first."""
        self._held = 0
        self._answered: OrderedDict[str, int] = OrderedDict()
        """Window id to the offset that was answered; what comes under it later is a repeat."""
        self._answered_until: dict[str, int] = {}
        """By run, the last window with a graph as recalled; those before it were answered, one way or another."""
        self._newest = -1

    def restore(self, said: Iterable[PriorOutput]) -> None:
        """Learn which windows have their graph."""
        for one in said:
            offset = one.sources.get(WINDOWS.name, -1)
            self._answer(one.record.window_id, offset)
            self._answered_until[one.record.run_id] = max(offset, self._answered_until.get(one.record.run_id, -1))

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        """Return the graphs of these windows, and of those that were held for a topology now there."""
        result: list[Output | Reject] = []
        for incoming in batch:
            self.counts["received"] += 1
            result += self._take(incoming)
        return result

    def tick(self, now_ms: int) -> Sequence[Output | Reject]:
        """Release what was held for a topology that has come, and refuse what has waited too long."""
        result: list[Output | Reject] = []
        for run_id in list(self._waiting):
            run = self._runs[run_id]
            if run.held_since_ms is None:
                run.held_since_ms = now_ms
            topology = self._topologies.get(run_id)
            if topology is not None:
                result += self._release(run_id, run, topology)
            elif now_ms - run.held_since_ms >= 1000 * self.settings.topology_timeout_s:
                reason = f"no topology of run {run_id} came in {self.settings.topology_timeout_s:g} s"
                while run.held:
                    result.append(self._refuse(run_id, run, reason))
        return result

    def flush(self) -> Sequence[Output | Reject]:
        """Answer what is held: the end of a replay, after which no topology comes."""
        result: list[Output | Reject] = []
        for run_id in list(self._waiting):
            run = self._runs[run_id]
            topology = self._topologies.get(run_id)
            if topology is not None:
                result += self._release(run_id, run, topology)
            while run.held:
                result.append(self._refuse(run_id, run, f"no topology of run {run_id} came before the replay's end"))
        return result

    def open_offsets(self) -> Mapping[str, int]:
        """Return the offset of the oldest window that is held, or part of the history of a run that goes on."""
        oldest = self._newest + 1 - self.settings.history_stretch
        waiting = [self._runs[run_id] for run_id in self._waiting]
        needed = [(run.history or run.held)[0].offset for run in waiting]
        for run in reversed(self._runs.values()):
            if run.offset < oldest:
                break
            needed += [one.offset for one in run.history if one.offset >= oldest][:1]
        return {WINDOWS.name: min(needed)} if needed else {}

    def _take(self, incoming: Incoming) -> Sequence[Output | Reject]:
        window: HealthWindow = incoming.record
        self._newest = max(self._newest, incoming.offset)
        kind = (window.clock, window.end - window.start)
        run = self._runs.get(window.run_id)
        repeat = 0 <= self._answered.get(window.window_id, -1) < incoming.offset
        if repeat or (run is not None and run.kind == kind and window.start <= run.start):
            self.counts["repeated"] += 1
            return ()
        if run is None:
            run = self._runs[window.run_id] = _Run(kind)
        elif run.kind != kind:
            run.kind = kind
            run.history.clear()
        run.start, run.offset = window.start, incoming.offset
        self._runs.move_to_end(window.run_id)
        self._forget()
        run.held.append(incoming)
        self._held += 1
        if window.window_id in self._answered and len(run.held) == 1:
            self.counts["repeated"] += 1  # published before a restart: now only history
            self._settle(window.run_id, run)
            return ()
        topology = self._topologies.get(window.run_id)
        if topology is not None:
            return self._release(window.run_id, run, topology)
        self._waiting.setdefault(window.run_id)
        self.counts["held"] += 1
        result = []
        while self._held > self.settings.max_held:
            longest = next(iter(self._waiting))
            reason = f"no topology of run {longest} came, and {self.settings.max_held} windows are held already"
            result.append(self._refuse(longest, self._runs[longest], reason))
        return result

    def _release(self, run_id: str, run: _Run, topology: ModelTopology) -> Sequence[Output | Reject]:
        """Answer a run's held windows, in their order."""
        result: list[Output | Reject] = []
        known = {layer.layer_id for layer in topology.layers}
        while run.held:
            incoming = run.held[0]
            window: HealthWindow = incoming.record
            strange = [layer for layer in window.layer_id if layer not in known]
            if strange:
                named = ", ".join(strange[:5]) + (" ..." if len(strange) > 5 else "")
                reason = f"{len(strange)} layers are not in topology {topology.topology_id}: {named}"
                result.append(self._refuse(run_id, run, reason, remember=False))
                continue
            try:
                result += self._answered_with(incoming, run, topology)
            except TamiyoError as error:
                result.append(self._refuse(run_id, run, str(error), remember=False))
                continue
            self._settle(run_id, run)
        return result

    def _answered_with(self, incoming: Incoming, run: _Run, topology: ModelTopology) -> Iterable[Output]:
        """Return the graph of a window, unless it was published before a restart."""
        window: HealthWindow = incoming.record
        if window.window_id in self._answered or incoming.offset <= self._answered_until.get(window.run_id, -1):
            self.counts["repeated"] += 1
            return ()
        # Measured in offsets, not in time: a restart finds the same history, however late it comes.
        oldest = incoming.offset - self.settings.history_stretch
        graph = self._build(window, topology, [one.record for one in run.history if one.offset >= oldest])
        self._answer(window.window_id, incoming.offset)
        self.counts["published"] += 1
        return (Output(GRAPHS, graph, graph.graph_id, incoming),)

    def _refuse(self, run_id: str, run: _Run, reason: str, remember: bool = True) -> Reject:
        """Reject a run's oldest held window. It stays part of the history unless it was wrong in itself."""
        incoming = run.held[0]
        self._settle(run_id, run, remember)
        self.counts["rejected"] += 1
        return Reject(incoming, reason)

    def _settle(self, run_id: str, run: _Run, remember: bool = True) -> None:
        """Take a run's oldest held window off the list."""
        incoming = run.held.popleft()
        self._held -= 1
        if remember:
            run.history.append(incoming)
        if incoming.record.final:
            run.history.clear()  # nothing follows that would need it
        if not run.held:
            self._waiting.pop(run_id, None)
            run.held_since_ms = None

    def _forget(self) -> None:
        """Let go of runs whose last window lies so far back that nothing would be built upon it."""
        while self._runs:
            run_id, run = next(iter(self._runs.items()))
            if run.held or run.offset >= self._newest - self.settings.history_stretch:
                return
            del self._runs[run_id]
            self._answered_until.pop(run_id, None)

    def _answer(self, window_id: str, offset: int) -> None:
        self._answered.setdefault(window_id, offset)
        if len(self._answered) > MAX_ANSWERED:
            self._answered.popitem(last=False)
