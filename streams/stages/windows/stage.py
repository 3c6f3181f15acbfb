"""Windows: the signals of a run, gathered by its own clock into tumbling windows that are final once.

A window [start, end) closes when the run's watermark has passed its end by the grace: the slowest of the sources that
tell of every step has come that far, so in order of source nothing can be missing. Its content is computed
then, from its signals in order of event time; what arrives for it afterwards is late.

Only open windows are state. The lowest offset among their signals is what a restart reads from; what was final is
read back from the windows already published.
"""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from tamiyo.schemas.analysis import HealthSignals, HealthWindow
from tamiyo.schemas.identity import identity, window_id
from tamiyo.schemas.record import MAX_LAYERS
from tamiyo.schemas.topics import SIGNALS, WINDOWS, Topic
from tamiyo.streams.settings import WindowSettings
from tamiyo.streams.stages.base import SHORT_ID, Incoming, Output, PriorOutput, Reject, Stage, View
from tamiyo.streams.stages.intake.frame_metrics import LARGEST
from tamiyo.streams.stages.recent_ids import RecentIds
from tamiyo.streams.stages.windows.watermark import FinalizedWindows, RunWatermark
from tamiyo.streams.stages.windows.window_stats import Contribution, layer_statistics, model_statistics

MAX_CLOSINGS = 100_000  # runs whose last window is remembered, so that a straggler of theirs is late, not a new window
MAX_INSIDE = 50_000  # signals of closed windows remembered, so that a repeat is dropped and not called late
MAX_LAYOUTS = 64  # distinct lists of layers shared among a run's signals


@dataclass(slots=True)
class _Open:
    start: int
    offset: int
    """Of its first signal: the lowest, since offsets only grow."""
    contributions: dict[str, Contribution] = field(default_factory=dict)
    layouts: set[tuple[str, ...]] = field(default_factory=set)
    rows: int = 0


@dataclass(slots=True)
class _Run:
    last: Incoming
    progress: RunWatermark = field(default_factory=RunWatermark)
    passed: int = 0
    """Windows that end here or before are final by the watermark, whether they ever held anything or not."""
    windows: dict[int, _Open] = field(default_factory=dict)
    layouts: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    rows: int = 0


class WindowsStage(Stage):
    """One partition of the log of signals."""

    name: ClassVar[str] = "windows"
    inputs: ClassVar[tuple[Topic, ...]] = (SIGNALS,)
    outputs: ClassVar[tuple[Topic, ...]] = (WINDOWS,)
    views: ClassVar[tuple[Topic, ...]] = ()

    def __init__(self, partition: int, settings: WindowSettings, views: Mapping[str, View[Any]]) -> None:
        self.partition = partition
        self.settings = settings
        self.counts: Counter[str] = Counter()
        """received, late, repeated and rejected signals; opened and published windows, idle and forced among them."""
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        """Those with open windows, the longest silent first."""
        self._closings: OrderedDict[str, FinalizedWindows] = OrderedDict()
        self._inside = RecentIds(MAX_INSIDE)
        """Short ids of the signals in closed windows."""
        self._rows = 0
        self._first_offsets: list[tuple[int, str, int]] = []
        """A heap of (offset, run, start); windows that have closed are skipped when they reach the top."""
        self._newest_ms = 0
        self._quiet_since_ms: int | None = None

    def restore(self, said: Iterable[PriorOutput]) -> None:
        """Learn which windows were final already, and which input had closed each."""
        newest = -1
        for one in said:
            self._remember(one.member_ids)
            newest = max(newest, one.sources.get(SIGNALS.name, newest))
            if one.record.clock == self.settings.clock:
                self._closed(one.record.run_id).add(one.record.end, one.sources.get(SIGNALS.name, newest))

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        """Return the windows that these signals closed, and the signals that are late."""
        result: list[Output | Reject] = []
        for incoming in batch:
            self.counts["received"] += 1
            self._newest_ms = max(self._newest_ms, incoming.timestamp_ms)
            refusal = self._take(incoming)
            if refusal is not None:
                result.append(refusal)
            else:
                result.extend(self._advance(incoming))
        self._quiet_since_ms = None
        return result

    def tick(self, now_ms: int) -> Sequence[Output | Reject]:
        """Close the windows of idle runs.

        Silence is measured on the log's own time, which runs on with the wall clock while nothing comes: a worker that
        catches up does not take the distance between a run's records for silence.
        """
        if not self.settings.idle_timeout_s:
            return ()
        if self._quiet_since_ms is None:
            self._quiet_since_ms = now_ms
        log_now = self._newest_ms + max(now_ms - self._quiet_since_ms, 0)
        result: list[Output] = []
        while self._runs:
            run_id, run = next(iter(self._runs.items()))
            if log_now - run.last.timestamp_ms < 1000 * self.settings.idle_timeout_s:
                break
            self.counts["idle"] += len(run.windows)
            result += self._close_all(run_id, run.last)
        return result

    def flush(self) -> Sequence[Output]:
        """Close every window: the end of a replay."""
        return [output for run_id in list(self._runs) for output in self._close_all(run_id, self._runs[run_id].last)]

    def open_offsets(self) -> Mapping[str, int]:
        """Return the offset of the oldest signal in an open window."""
        heap = self._first_offsets
        while heap:
            offset, run_id, start = heap[0]
            run = self._runs.get(run_id)
            if run is not None and start in run.windows and run.windows[start].offset == offset:
                return {SIGNALS.name: offset}
            heapq.heappop(heap)
        return {}

    def _take(self, incoming: Incoming) -> Reject | None:
        """Put a signal into its window; return why that cannot be."""
        signal: HealthSignals = incoming.record
        clock = signal.step if self.settings.clock == "step" else signal.time_ms
        run = self._runs.get(signal.run_id)
        closings = self._closings.get(signal.run_id)
        final_then = max(closings.before(incoming.offset) if closings else 0, run.passed if run else 0)
        width = self.settings.width
        if signal.signal_id[:SHORT_ID] in self._inside:
            self.counts["repeated"] += 1
            return None
        if clock < final_then:
            if not signal.final:
                self.counts["late"] += 1
                unit = "step" if self.settings.clock == "step" else "ms"
                reason = f"at {clock} ({unit}), but the run's windows up to {final_then} were final"
                return Reject(incoming, reason, late=True)
            # A run's last frame is never late: where its window closed for idleness, it counts in the next.
            clock = final_then
        start = clock // width * width
        published = closings is not None and clock < closings.floor  # before a restart, with this signal inside
        if published or (run is not None and _has(run, start, signal.signal_id)):
            self.counts["repeated"] += 1
            return None
        contribution, reason = self._contribution(run, start, signal, clock)
        if contribution is None:
            self.counts["rejected"] += 1
            return Reject(incoming, reason)
        if run is None:
            run = self._runs[signal.run_id] = _Run(incoming)
        run.last = incoming
        self._runs.move_to_end(signal.run_id)
        window = run.windows.get(start)
        if window is None:
            window = run.windows[start] = _Open(start, incoming.offset)
            self.counts["opened"] += 1
            self._note(incoming.offset, signal.run_id, start)
        layouts = run.layouts if len(run.layouts) < MAX_LAYOUTS else {}
        window.contributions[signal.signal_id] = contribution
        window.layouts.add(layouts.setdefault(contribution.layers, contribution.layers))
        window.rows += len(contribution.layers)
        run.rows += len(contribution.layers)
        self._rows += len(contribution.layers)
        run.progress.observe(signal.source, clock, signal.companions, signal.final)
        return None

    def _contribution(
        self, run: _Run | None, start: int, signal: HealthSignals, clock: int
    ) -> tuple[Contribution | None, str]:
        layers = tuple(signal.layer_id)
        if run is not None:
            layers = run.layouts.get(layers, layers)  # one copy for all frames of a run, not one a frame
        contribution = Contribution.of(signal, clock, layers, tuple(signal.metrics))
        largest = max([0.0, *map(abs, signal.model_metrics.values())])
        if contribution.values.size:
            largest = max(largest, float(np.fmax.reduce(np.abs(contribution.values), axis=None, initial=0.0)))
        if largest > LARGEST:
            return None, f"a value of {largest:g} is beyond {LARGEST:g}, the largest that can be measured"
        window = run.windows.get(start) if run is not None else None
        if window is not None and layers not in window.layouts:
            together = set(layers).union(*window.layouts)
            if len(together) > MAX_LAYERS:
                return None, f"the window would have {len(together)} layers; {MAX_LAYERS} are allowed"
        return contribution, ""

    def _advance(self, incoming: Incoming) -> Sequence[Output]:
        """Close what the signal just taken has made final."""
        run_id: str = incoming.record.run_id
        run = self._runs.get(run_id)
        result: list[Output] = []
        if run is not None and run.progress.finished:
            result += self._close_all(run_id, incoming, final=True)
        elif run is not None:
            watermark = run.progress.watermark(self.settings.delay)
            if watermark is not None:
                width = self.settings.width
                run.passed = max(run.passed, (watermark - self.settings.grace) // width * width)
                due = sorted(start for start in run.windows if start + width <= run.passed)
                result += [self._close(run_id, run, start, incoming) for start in due]
        while self._rows > self.settings.max_open_signals:
            fullest = max(self._runs, key=lambda name: self._runs[name].rows)
            self.counts["forced"] += 1
            fullest_run = self._runs[fullest]
            result.append(self._close(fullest, fullest_run, min(fullest_run.windows), incoming))
        while len(self._runs) > self.settings.max_open_runs:
            silent = next(iter(self._runs))
            self.counts["forced"] += len(self._runs[silent].windows)
            result += self._close_all(silent, incoming)
        return result

    def _close_all(self, run_id: str, source: Incoming, final: bool = False) -> Sequence[Output]:
        run = self._runs[run_id]
        starts = sorted(run.windows)
        return [self._close(run_id, run, start, source, final and start == starts[-1]) for start in starts]

    def _close(self, run_id: str, run: _Run, start: int, source: Incoming, final: bool = False) -> Output:
        window = run.windows.pop(start)
        self._rows -= window.rows
        run.rows -= window.rows
        inside = tuple(window.contributions)
        self._remember(inside)
        closings = self._closed(run_id)
        closings.add(start + self.settings.width, source.offset)
        closings.settle(source.offset)  # what is read from here on lies behind it
        if not run.windows:
            del self._runs[run_id]  # after its last frame, or idle: the watermark always leaves one open
        self.counts["published"] += 1
        record = self._record(run_id, window, final)
        return Output(WINDOWS, record, record.window_id, source, inside)

    def _remember(self, names: Sequence[str]) -> None:
        for name in names:
            self._inside.add(name[:SHORT_ID])

    def _record(self, run_id: str, window: _Open, final: bool) -> HealthWindow:
        settings = self.settings
        inside = sorted(window.contributions.values(), key=lambda one: one.order)
        layers, metrics = layer_statistics(inside, window.start)
        return HealthWindow(
            run_id=run_id,
            window_id=window_id(run_id, settings.clock, settings.width, window.start),
            clock=settings.clock,
            start=window.start,
            end=window.start + settings.width,
            first_step=min(one.step for one in inside),
            last_step=max(one.step for one in inside),
            time_ms=max(one.time_ms for one in inside),
            final=final,
            layer_id=layers,
            metrics=metrics,
            model_metrics=model_statistics(inside, window.start),
            signals=window.rows,
            frames=len(inside),
            shed=sum(one.shed for one in inside),
            signals_digest=identity("signals", *sorted(window.contributions)),
        )

    def _note(self, offset: int, run_id: str, start: int) -> None:
        heap = self._first_offsets
        heapq.heappush(heap, (offset, run_id, start))
        if len(heap) > 1_000 + 4 * (self.counts["opened"] - self.counts["published"]):
            heap[:] = sorted(
                (w.offset, name, w.start) for name, run in self._runs.items() for w in run.windows.values()
            )

    def _closed(self, run_id: str) -> FinalizedWindows:
        closings = self._closings.pop(run_id, None) or FinalizedWindows()
        self._closings[run_id] = closings
        if len(self._closings) > MAX_CLOSINGS:
            self._closings.popitem(last=False)
        return closings


def _has(run: _Run, start: int, signal_id: str) -> bool:
    window = run.windows.get(start)
    return window is not None and signal_id in window.contributions
