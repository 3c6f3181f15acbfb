"""The history of an installation: runs, decisions, policies, topics and stages."""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from tamiyo.schemas.adaptation import (
    ALL_RUNS,
    AdaptationDecision,
    AdaptationOutcome,
    CompiledKernel,
    ControlCommand,
    DecisionType,
)
from tamiyo.schemas.learning import PolicyCheckpoint, RewardAnalysis
from tamiyo.schemas.telemetry import ErrorRecoveryEvent, ModelPerformance, ModelTopology
from tamiyo.schemas.topics import CONTROL
from tamiyo.streams.watch.history import runs as bounds
from tamiyo.streams.watch.history.decisions import DecisionHistory
from tamiyo.streams.watch.history.frames import GraphFrame, LayerFrame, WindowFrame
from tamiyo.streams.watch.history.interest import Interest
from tamiyo.streams.watch.history.observed import Observed
from tamiyo.streams.watch.history.orders import OrderHistory
from tamiyo.streams.watch.history.policies import PolicyHistory
from tamiyo.streams.watch.history.runs import RunHistory
from tamiyo.streams.watch.history.source import Source
from tamiyo.streams.watch.history.topics import TopicsHistory

MAX_RUNS = 5_000
MAX_DETAILS = 10_000  # decisions that are kept in full, over all runs: about 10 kB each
MAX_DECISIONS = 100_000  # decisions that are kept at all, over all runs: about 1 kB each
MAX_CELLS = 30_000_000  # numbers in the series of all runs: about 250 MB
MAX_REMOVED = 1_000
CHECK_RECORDS = 2_000  # records between two checks of the numbers kept


class History:
    """Everything that the views show. Thread-safe: a feed writes to it while views are made.

    Args:
        clock: Returns the time now, ms since the epoch.
        max_runs: Runs kept; finished ones go first, the longest quiet first.
        max_details: Decisions kept in full.
        max_decisions: Decisions kept at all.
        max_cells: Numbers kept in series; those of the runs that changed least recently are thinned first.

    Example:
        >>> history = History(clock=lambda: 2_000)
        >>> frame = ModelPerformance(run_id="run-1", step=10, time_ms=1_000, train_loss=0.5)
        >>> history.take([Observed.of(frame, time_ms=1_000)])
        >>> history.revision, list(history.runs)
        (1, ['run-1'])
    """

    def __init__(
        self,
        *,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        max_runs: int = MAX_RUNS,
        max_details: int = MAX_DETAILS,
        max_decisions: int = MAX_DECISIONS,
        max_cells: int = MAX_CELLS,
    ) -> None:
        """Know nothing."""
        self.lock = threading.RLock()
        """Held while the history changes, and while a view is made of it."""
        self.clock = clock
        self.source = Source()
        self.revision = 0
        """Of the last change."""
        self.fleet_revision = 0
        """Of the last change of a run."""
        self.runs: OrderedDict[str, RunHistory] = OrderedDict()
        """The run that changed last is last."""
        self.removed: deque[tuple[int, str]] = deque(maxlen=MAX_REMOVED)
        """(revision, run id) of runs that are no longer kept."""
        self.forgotten = 0
        """Revision before which removals are no longer known."""
        self.stages_wanted = Interest()
        """Whether someone watches the stages, whose state costs requests."""
        self.policies = PolicyHistory()
        self.orders = OrderHistory()
        self.topics = TopicsHistory()
        self._detailed: OrderedDict[DecisionHistory, None] = OrderedDict()
        self._kept: OrderedDict[DecisionHistory, None] = OrderedDict()
        self._max_runs = max_runs
        self._max_details = max_details
        self._max_decisions = max_decisions
        self._max_cells = max_cells
        self._subscribers: list[Callable[[], None]] = []

    def subscribe(self, on_change: Callable[[], None]) -> Callable[[], None]:
        """Call `on_change` after each change, in the thread that made it; return what ends that."""
        self._subscribers = [*self._subscribers, on_change]

        def end() -> None:
            self._subscribers = [each for each in self._subscribers if each is not on_change]

        return end

    def take(self, batch: Iterable[Observed]) -> None:
        """Take messages in any order; each change gets the next revision."""
        second = time.monotonic_ns() // 1_000_000_000
        with self.lock:
            for each in batch:
                self._take(each, second)
        self.notify()

    def update_source(self, **changes: Any) -> None:
        """Change facts of the source, and the problem that keeps it from being read."""
        with self.lock:
            for name, value in changes.items():
                setattr(self.source, name, value)
        self.notify()

    def update_topics(
        self,
        *,
        partitions: Mapping[str, int] = MappingProxyType({}),
        in_log: Mapping[str, int] = MappingProxyType({}),
        total: int | None = None,
    ) -> None:
        """Note the partitions of topics, their records in the log, and the records to read in total, if known."""
        with self.lock:
            for name, count in partitions.items():
                self.topics.topics[name].partitions = count
            for name, count in in_log.items():
                if name in self.topics.topics:
                    self.topics.topics[name].in_log = count
            if total is not None:
                self.source.total = total
        self.notify()

    def update_stages(self, stages: list[dict[str, Any]]) -> None:
        """Replace the state of the stages."""
        with self.lock:
            self.topics.stages = stages
        self.notify()

    def tick(self) -> None:
        """Note which runs have become silent; call it every few seconds where the source is live."""
        with self.lock:
            before_ms = self.clock() - bounds.QUIET_MS
            for run in list(self.runs.values()):
                if not run.silent and run.newest_ms < before_ms:
                    self._next_revision(run)
                    run.silent = True
        self.notify()

    def now_ms(self, at_ms: int | None = None) -> int:
        """Return the time that a view is made as of: the past time, else now, else the end of the recording."""
        if at_ms is not None:
            return at_ms
        return self.clock() if self.source.live or self.source.to_ms is None else self.source.to_ms

    def notify(self) -> None:
        """Call the subscribers."""
        for each in self._subscribers:
            each()

    # Taking one message

    def _take(self, each: Observed, second: int) -> None:
        self.revision += 1
        source = self.source
        source.records += 1
        if each.time_ms >= 0:
            source.from_ms = each.time_ms if source.from_ms is None else min(source.from_ms, each.time_ms)
            source.to_ms = each.time_ms if source.to_ms is None else max(source.to_ms, each.time_ms)
        topic = self.topics.topics.get(each.topic)
        if topic is None:
            self.topics.take_dead_letter(each.topic, each.reason, each.key, each.time_ms)
            return
        topic.take(each.time_ms, second)
        if each.topic == CONTROL.name:
            self._take_order(each)
        elif isinstance(each.record, PolicyCheckpoint):
            self.policies.take(each.record, each.key, each.time_ms, self.revision)
        elif each.record is not None:
            self._take_of_run(each)

    def _take_order(self, each: Observed) -> None:
        command = each.record if isinstance(each.record, ControlCommand) else None
        self.orders.take(each.key, command, each.time_ms)
        affected = list(self.runs.values()) if each.key == ALL_RUNS else [self.runs.get(each.key)]
        for run in affected:
            if run is not None:
                self._changed(run)

    def _take_of_run(self, each: Observed) -> None:
        record, time_ms, revision = each.record, each.time_ms, self.revision
        run = self._run(record.run_id)
        match record:
            case ModelPerformance():
                run.take_performance(record, time_ms, revision)
            case LayerFrame():
                run.take_layers(record, time_ms, revision)
            case GraphFrame():
                run.take_graph(record, time_ms, revision)
            case WindowFrame():
                run.take_window(record, time_ms, revision)
                self.topics.take_window(record.signals, record.shed, time_ms)
            case ModelTopology():
                run.take_topology(record, time_ms, revision)
            case ErrorRecoveryEvent():
                run.take_error(record, time_ms, revision)
            case AdaptationDecision() | CompiledKernel() | AdaptationOutcome() | RewardAnalysis():
                self._take_of_decision(run, each)
        run.seen(time_ms)
        self._changed(run)
        if revision % CHECK_RECORDS == 0:
            self._bound_cells()

    def _take_of_decision(self, run: RunHistory, each: Observed) -> None:
        record = each.record
        found = run.decisions.get(record.decision_id)
        if found is None:
            found = self._new_decision(run, record.decision_id)
        match record:
            case AdaptationDecision():
                news = found.take_decision(record, each.time_ms, each.raw)
                if news and record.type != DecisionType.NO_OP.value:
                    run.add_adaptation(found)
            case CompiledKernel():
                news = found.take_kernel(record, each.time_ms, each.raw)
            case AdaptationOutcome():
                news = found.take_outcome(record, each.time_ms, each.raw)
            case _:
                news = found.take_reward(record, each.time_ms, each.raw)
        if news:
            found.revision = run.decisions_revision = self.revision
            share = found.share_at()
            if share != found.share:
                run.totals.add(found.share, -1)
                run.totals.add(share)
                self.policies.count(found.share, share, self.revision)
                found.share = share

    # Bounds

    def _run(self, run_id: str) -> RunHistory:
        run = self.runs.get(run_id)
        if run is None:
            if len(self.runs) >= self._max_runs:
                oldest = next((each for each in self.runs.values() if each.ended()), next(iter(self.runs.values())))
                self._remove(oldest)
            run = self.runs[run_id] = RunHistory(run_id, self.revision)
        return run

    def _remove(self, run: RunHistory) -> None:
        del self.runs[run.run_id]
        for each in run.decisions.values():
            self._kept.pop(each, None)
            self._detailed.pop(each, None)
        if len(self.removed) == MAX_REMOVED:
            self.forgotten = self.removed[0][0]
        self.removed.append((self.revision, run.run_id))

    def _new_decision(self, run: RunHistory, decision_id: str) -> DecisionHistory:
        found = run.decisions[decision_id] = DecisionHistory(run.run_id, decision_id)
        self._kept[found] = self._detailed[found] = None
        if len(run.decisions) > bounds.MAX_DECISIONS:
            self._drop(next(iter(run.decisions.values())))
        if len(self._detailed) > self._max_details:
            self._detailed.popitem(last=False)[0].drop_details()
        if len(self._kept) > self._max_decisions:
            self._drop(next(iter(self._kept)))
        return found

    def _drop(self, decision: DecisionHistory) -> None:
        """Keep a decision in the totals only."""
        self._kept.pop(decision, None)
        self._detailed.pop(decision, None)
        self.runs[decision.run_id].drop_decision(decision)

    def _bound_cells(self) -> None:
        cells = sum(run.cells for run in self.runs.values())
        if cells <= self._max_cells:
            return
        for run in self.runs.values():  # those that changed least recently first
            before = run.cells
            run.thin(self.revision)
            cells += run.cells - before
            if cells <= 0.9 * self._max_cells:  # not at every check
                return

    def _next_revision(self, run: RunHistory) -> None:
        self.revision += 1
        self._changed(run)

    def _changed(self, run: RunHistory) -> None:
        run.revision = self.fleet_revision = self.revision
        self.runs.move_to_end(run.run_id)
