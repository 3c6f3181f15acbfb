"""Graphs: each window joined with its run's topology and the run's windows before it.

A window whose topology has not arrived is held, within bounds of number and time. A graph needs its window and the
run's last windows, its history. These keep their offsets uncommitted, so that a restart reads them again and builds the
same bytes; a graph that was published before is not published again.
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

MAX_PUBLISHED = 100_000  # windows remembered to have a graph; a restart reads far fewer again
MAX_NAMED_LAYERS = 5  # in a reason: enough to recognise what is wrong


@dataclass(slots=True)
class _Run:
    kind: tuple[str, int]
    """Clock and width of its windows. When they change, its history starts anew."""
    start: int = -1
    """Of the newest window."""
    offset: int = -1
    """Of the newest window."""
    history: deque[Incoming] = field(default_factory=lambda: deque(maxlen=HISTORY_WINDOWS))
    held: deque[Incoming] = field(default_factory=deque)
    held_since_ms: int | None = None
    """The first tick since a window is held."""


class GraphsStage(Stage):
    """The graphs of one partition of windows.

    Args:
        partition: The partition of `tamiyo.health.windows`.
        settings: How many windows wait for a topology and how long, and how far back history reaches.
        views: The newest topology of each run, under the topology topic's name.
        build: The function that builds a graph from a window, a topology and the windows before, oldest first.
    """

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
        self._newest_offset = -1
        self._published: OrderedDict[str, int] = OrderedDict()
        """Id to offset of each window that has a graph; the same id at a higher offset is a repeat."""
        self._published_until: dict[str, int] = {}
        """By run, the offset of the last window with a restored graph: it and those before it were processed."""

    def restore(self, outputs: Iterable[PriorOutput]) -> None:
        """Restore which windows have their graph.

        Args:
            outputs: The graphs this partition has published, oldest first.
        """
        for output in outputs:
            offset = output.sources.get(WINDOWS.name, -1)
            self._add_published(output.record.window_id, offset)
            run_id = output.record.run_id
            self._published_until[run_id] = max(offset, self._published_until.get(run_id, -1))

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        """Join windows with their topologies.

        Args:
            batch: Windows in order of their offsets.

        Returns:
            The graphs of these windows and of those held for a topology that has arrived, and the windows that cannot
            be used, in order.
        """
        result: list[Output | Reject] = []
        for incoming in batch:
            self.counts["received"] += 1
            result += self._take(incoming)
        return result

    def tick(self, now_ms: int) -> Sequence[Output | Reject]:
        """Release the windows whose topology has arrived, and reject those that have waited too long.

        Args:
            now_ms: The steady clock, ms since the epoch.

        Returns:
            Their graphs and rejections.
        """
        result: list[Output | Reject] = []
        for run_id in list(self._waiting):
            run = self._runs[run_id]
            if run.held_since_ms is None:
                run.held_since_ms = now_ms
            topology = self._topologies.get(run_id)
            if topology is not None:
                result += self._release(run_id, run, topology)
            elif now_ms - run.held_since_ms >= 1000 * self.settings.topology_timeout_s:
                reason = f"no topology of run {run_id} arrived within {self.settings.topology_timeout_s:g} s"
                while run.held:
                    result.append(self._reject(run_id, run, reason))
        return result

    def flush(self) -> Sequence[Output | Reject]:
        """Release or reject every held window, at the end of a replay, after which no topology arrives."""
        result: list[Output | Reject] = []
        for run_id in list(self._waiting):
            run = self._runs[run_id]
            topology = self._topologies.get(run_id)
            if topology is not None:
                result += self._release(run_id, run, topology)
            while run.held:
                result.append(self._reject(run_id, run, f"no topology of run {run_id} before the end of the replay"))
        return result

    def open_offsets(self) -> Mapping[str, int]:
        """Return the lowest offset of a window that is held or part of the history of a run that goes on, by topic."""
        oldest = self._newest_offset + 1 - self.settings.history_stretch
        waiting = [self._runs[run_id] for run_id in self._waiting]
        needed = [(run.history or run.held)[0].offset for run in waiting]
        for run in reversed(self._runs.values()):
            if run.offset < oldest:
                break
            needed += [window.offset for window in run.history if window.offset >= oldest][:1]
        return {WINDOWS.name: min(needed)} if needed else {}

    def _take(self, incoming: Incoming) -> Sequence[Output | Reject]:
        window: HealthWindow = incoming.record
        self._newest_offset = max(self._newest_offset, incoming.offset)
        if self._is_repeat(incoming):
            self.counts["repeated"] += 1
            return ()
        run = self._advance_run(incoming)
        self._drop_distant_runs()
        run.held.append(incoming)
        self._held += 1
        if window.window_id in self._published and len(run.held) == 1:
            self.counts["repeated"] += 1  # published before a restart: now only history
            self._pop_held(window.run_id, run)
            return ()
        topology = self._topologies.get(window.run_id)
        if topology is not None:
            return self._release(window.run_id, run, topology)
        self._waiting.setdefault(window.run_id)
        self.counts["held"] += 1
        return self._reject_excess()

    def _is_repeat(self, incoming: Incoming) -> bool:
        """Return whether the same or a later window of the run was read before, at a lower offset.

        A window with a graph may be repeated after its run was dropped; only its id identifies it then. A window read
        again after a restart has its old offset and is no repeat: the history needs it.
        """
        window: HealthWindow = incoming.record
        if 0 <= self._published.get(window.window_id, -1) < incoming.offset:
            return True
        run = self._runs.get(window.run_id)
        return run is not None and run.kind == _kind(window) and window.start <= run.start

    def _advance_run(self, incoming: Incoming) -> _Run:
        """Make this the newest window of its run, and the run the newest; return the run."""
        window: HealthWindow = incoming.record
        run = self._runs.setdefault(window.run_id, _Run(_kind(window)))
        if run.kind != _kind(window):
            run.kind = _kind(window)
            run.history.clear()
        run.start, run.offset = window.start, incoming.offset
        self._runs.move_to_end(window.run_id)
        return run

    def _reject_excess(self) -> Sequence[Reject]:
        """Reject held windows beyond the bound, those of the run that has waited longest first."""
        result = []
        while self._held > self.settings.max_held:
            run_id = next(iter(self._waiting))
            reason = f"no topology of run {run_id} has arrived, and {self.settings.max_held} windows are held already"
            result.append(self._reject(run_id, self._runs[run_id], reason))
        return result

    def _release(self, run_id: str, run: _Run, topology: ModelTopology) -> Sequence[Output | Reject]:
        """Build the graphs of a run's held windows, in their order."""
        result: list[Output | Reject] = []
        known = {layer.layer_id for layer in topology.layers}
        while run.held:
            incoming = run.held[0]
            window: HealthWindow = incoming.record
            unknown = [layer for layer in window.layer_id if layer not in known]
            if unknown:
                named = ", ".join(unknown[:MAX_NAMED_LAYERS]) + (" ..." if len(unknown) > MAX_NAMED_LAYERS else "")
                reason = f"{len(unknown)} layers are not in topology {topology.topology_id}: {named}"
                result.append(self._reject(run_id, run, reason, remember=False))
                continue
            try:
                result += self._graph(incoming, run, topology)
            except TamiyoError as error:
                result.append(self._reject(run_id, run, str(error), remember=False))
                continue
            self._pop_held(run_id, run)
        return result

    def _graph(self, incoming: Incoming, run: _Run, topology: ModelTopology) -> Iterable[Output]:
        """Return the graph of a window; nothing if it was published, or the window rejected, before a restart."""
        window: HealthWindow = incoming.record
        if window.window_id in self._published or incoming.offset <= self._published_until.get(window.run_id, -1):
            self.counts["repeated"] += 1
            return ()
        # Measured in offsets, not in time, so that a restart builds upon the same history, however late it is.
        oldest = incoming.offset - self.settings.history_stretch
        graph = self._build(window, topology, [past.record for past in run.history if past.offset >= oldest])
        self._add_published(window.window_id, incoming.offset)
        self.counts["published"] += 1
        return (Output(GRAPHS, graph, graph.graph_id, incoming),)

    def _reject(self, run_id: str, run: _Run, reason: str, remember: bool = True) -> Reject:
        """Reject a run's oldest held window. It stays part of the history unless its content is wrong."""
        incoming = run.held[0]
        self._pop_held(run_id, run, remember)
        self.counts["rejected"] += 1
        return Reject(incoming, reason)

    def _pop_held(self, run_id: str, run: _Run, remember: bool = True) -> None:
        """Move a run's oldest held window to its history, or drop it if not to `remember`."""
        incoming = run.held.popleft()
        self._held -= 1
        if remember:
            run.history.append(incoming)
        if incoming.record.final:
            run.history.clear()  # no window follows that would need it
        if not run.held:
            self._waiting.pop(run_id, None)
            run.held_since_ms = None

    def _drop_distant_runs(self) -> None:
        """Drop the runs whose last window is too far back to be history of another."""
        while self._runs:
            run_id, run = next(iter(self._runs.items()))
            if run.held or run.offset >= self._newest_offset - self.settings.history_stretch:
                return
            del self._runs[run_id]
            self._published_until.pop(run_id, None)

    def _add_published(self, window_id: str, offset: int) -> None:
        self._published.setdefault(window_id, offset)
        if len(self._published) > MAX_PUBLISHED:
            self._published.popitem(last=False)


def _kind(window: HealthWindow) -> tuple[str, int]:
    return window.clock, window.end - window.start
