"""The open windows of a partition, by run: the state of the windows stage."""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tamiyo.schemas.analysis import HealthSignals
from tamiyo.schemas.errors import RecordError
from tamiyo.schemas.record import MAX_LAYERS
from tamiyo.streams.stages.base import Incoming
from tamiyo.streams.stages.intake.frame_metrics import LARGEST
from tamiyo.streams.stages.windows.classification import Window
from tamiyo.streams.stages.windows.watermark import RunWatermark
from tamiyo.streams.stages.windows.window_stats import Contribution

MAX_LAYOUTS = 64  # distinct lists of layers shared among a run's signals


@dataclass(slots=True)
class OpenWindow:
    """One window that still takes signals; `signal_id in window` tests whether a signal is inside."""

    start: int
    offset: int
    """Of its first signal: the lowest, since offsets only grow."""
    contributions: dict[str, Contribution] = field(default_factory=dict)
    """By signal id, in order of arrival."""
    layouts: set[tuple[str, ...]] = field(default_factory=set)
    """The distinct lists of layers of its signals."""
    rows: int = 0
    """Layer-signals inside."""

    def __contains__(self, signal_id: object) -> bool:
        return signal_id in self.contributions


@dataclass(slots=True)
class OpenRun:
    """One run that has open windows."""

    run_id: str
    last: Incoming
    """Its newest signal."""
    active_ms: int = 0
    """When that was, by the log's clock."""
    watermark: RunWatermark = field(default_factory=RunWatermark)
    passed: int = 0
    """Windows that end here or before are final by the watermark, whether they ever held anything or not."""
    windows: dict[int, OpenWindow] = field(default_factory=dict)
    """By start."""
    layouts: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    """One copy of each list of layers, for all frames that have it."""
    rows: int = 0
    """Layer-signals in its open windows."""

    def advance(self, *, delay: int, grace: int, width: int) -> list[int]:
        """Let windows pass that end at least `grace` before the watermark; return the starts of those open, in order.

        Args:
            delay: How far the watermark stays behind the slowest source, in the clock's unit.
            grace: How long past its end a window still takes records, in the clock's unit.
            width: The width of windows, in the clock's unit.
        """
        watermark = self.watermark.value(delay)
        if watermark is None:
            return []
        self.passed = max(self.passed, (watermark - grace) // width * width)
        return sorted(start for start in self.windows if start + width <= self.passed)

    def shared(self, layers: tuple[str, ...]) -> tuple[str, ...]:
        """Return the copy of a list of layers that this run's signals share."""
        if len(self.layouts) < MAX_LAYOUTS:
            return self.layouts.setdefault(layers, layers)
        return self.layouts.get(layers, layers)


class OpenWindows:
    """The open windows of a partition; iterating gives the runs that have any, the longest idle first."""

    def __init__(self) -> None:
        self.rows = 0
        """Layer-signals held."""
        self._runs: OrderedDict[str, OpenRun] = OrderedDict()
        self._windows = 0
        self._first_offsets: list[tuple[int, str, int]] = []
        """A heap of (offset, run, start); windows that have closed are skipped when they reach the top."""

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[OpenRun]:
        return iter(self._runs.values())

    def run(self, run_id: str) -> OpenRun | None:
        """Return a run, or None if it has no open window."""
        return self._runs.get(run_id)

    def fullest(self) -> OpenRun:
        """Return the run that holds the most layer-signals."""
        return max(self._runs.values(), key=lambda run: run.rows)

    def add(self, incoming: Incoming, place: Window) -> OpenRun:
        """Put a signal into its window, which is opened for its first signal.

        Args:
            incoming: The signal, at a higher offset than all before it.
            place: The start of its window, and the clock value at which it counts.

        Returns:
            The signal's run, now the one active last.

        Raises:
            RecordError: A value is beyond any that can be measured, or the window would have too many layers. Nothing
                has changed then.
        """
        signal: HealthSignals = incoming.record
        run = self._runs.get(signal.run_id) or OpenRun(signal.run_id, incoming)
        window = run.windows.get(place.start) or OpenWindow(place.start, incoming.offset)
        contribution = Contribution.of(signal, place.clock, run.shared(tuple(signal.layer_id)))
        _check(contribution, window)
        self._runs[run.run_id] = run
        self._runs.move_to_end(run.run_id)
        run.last = incoming
        if place.start not in run.windows:
            run.windows[place.start] = window
            self._windows += 1
            self._push(window, run.run_id)
        window.contributions[signal.signal_id] = contribution
        window.layouts.add(contribution.layers)
        rows = len(contribution.layers)
        window.rows += rows
        run.rows += rows
        self.rows += rows
        run.watermark.observe(signal.source, place.clock, signal.companions, signal.final)
        return run

    def close(self, run: OpenRun, start: int) -> OpenWindow:
        """Remove a window and return it; a run without open windows is forgotten, watermark included."""
        window = run.windows.pop(start)
        self._windows -= 1
        self.rows -= window.rows
        run.rows -= window.rows
        if not run.windows:
            del self._runs[run.run_id]
        return window

    def lowest_offset(self) -> int | None:
        """Return the lowest offset of a signal in an open window, or None if no window is open."""
        heap = self._first_offsets
        while heap:
            offset, run_id, start = heap[0]
            run = self._runs.get(run_id)
            if run is not None and start in run.windows and run.windows[start].offset == offset:
                return offset
            heapq.heappop(heap)
        return None

    def _push(self, window: OpenWindow, run_id: str) -> None:
        heap = self._first_offsets
        heapq.heappush(heap, (window.offset, run_id, window.start))
        # A window that stays open keeps the closed ones behind it in the heap; a sorted list is a heap, too.
        if len(heap) > 1_000 + 4 * self._windows:
            heap[:] = sorted((each.offset, run.run_id, each.start) for run in self for each in run.windows.values())


def _check(contribution: Contribution, window: OpenWindow) -> None:
    largest = max([0.0, *map(abs, contribution.model.values())])
    if contribution.values.size:
        largest = max(largest, float(np.fmax.reduce(np.abs(contribution.values), axis=None)))
    if largest > LARGEST:
        raise RecordError(f"a value of {largest:g} is beyond {LARGEST:g}, the largest that can be measured")
    if contribution.layers not in window.layouts:
        layers = set(contribution.layers).union(*window.layouts)
        if len(layers) > MAX_LAYERS:
            raise RecordError(f"the window would have {len(layers)} layers; {MAX_LAYERS} are allowed")
