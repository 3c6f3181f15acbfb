"""What the SDK costs the training loop, and the governor that keeps it within its budget."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class OverheadMeter:
    """Splits wall-clock time in two: training, and the SDK; anything `outside` counts as neither.

    The SDK's hooks are timed. What it does where no clock can stand (wrapping a layer, its own threads) is `charge`d
    as found out elsewhere: taken from training's time, as if nothing ran beside it, so that the ratio is rather too
    high than too low. librdkafka's threads, which hold no lock that training needs, are left out. What a grown
    network computes is training. Time counts from the end of the first step on, when everything that
    is done once has been done.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.sdk_seconds = 0.0
        self.training_seconds = 0.0
        self._clock = clock
        self._mark = 0.0
        self._depth = 0
        self._running = False

    @property
    def ratio(self) -> float:
        """Time in the SDK / time of training without it; 0 before anything was measured."""
        return self.sdk_seconds / self.training_seconds if self.training_seconds > 0 else 0.0

    def start(self) -> None:
        """Begin to count; a repeat changes nothing."""
        if not self._running:
            self._running, self._mark = True, self._clock()

    def stop(self) -> None:
        """Count no more."""
        self._running = False

    def enter(self) -> None:
        """The SDK takes over. Nested calls count once."""
        if self._depth == 0:
            now = self._clock()
            if self._running:
                self.training_seconds += now - self._mark
            self._mark = now
        self._depth += 1

    def leave(self) -> None:
        """Training goes on."""
        self._depth -= 1
        if self._depth == 0:
            now = self._clock()
            if self._running:
                self.sdk_seconds += now - self._mark
            self._mark = now

    def charge(self, seconds: float) -> None:
        """Count `seconds` that passed for training as the SDK's."""
        if self._running:
            taken = min(seconds, self.training_seconds)
            self.training_seconds -= taken
            self.sdk_seconds += taken

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Within: neither training nor the SDK (the user's validation)."""
        self.enter()
        self.leave()
        try:
            yield
        finally:
            self._mark = self._clock()


class Governor:
    """Decides when a probe is due: at its interval, or more rarely where the probes together would cost too much.

    A probe's load is its cost (median of its last three runs) over the training time of its interval. What the SDK
    does at every step, and adaptations, cannot wait, so the probes share what those leave of the budget, at least half
    of it. Frames come first, since every later stage lives on them: they may take three quarters of that, the other
    probes what is left, all of these stretched by the same factor. Where the overhead really measured is above the
    budget, everything is stretched by the square of the excess.
    """

    FRAMES = "frames"
    MOST_FRAMES = 2.0
    """Frames are stretched no further: a window without one is a window without a decision."""

    def __init__(self, meter: OverheadMeter, budget: float, intervals: Mapping[str, int]) -> None:
        """`intervals` in steps by probe, `FRAMES` among them; the other probes run on sampled steps only."""
        self._meter = meter
        self._budget = budget
        self._intervals = dict(intervals)
        self._costs: dict[str, deque[float]] = {name: deque(maxlen=3) for name in intervals}
        self._last: dict[str, int] = dict.fromkeys(intervals, 0)
        self._stretch: dict[str, float] = dict.fromkeys(intervals, 1.0)
        self._governed = 0.0

    def due(self, probe: str, step: int) -> bool:
        """Whether `probe` is to run at `step`."""
        return step - self._last[probe] >= self.interval(probe)

    def interval(self, probe: str) -> float:
        """Steps between two runs of `probe`, as things stand."""
        return self._intervals[probe] * self._stretch[probe]

    def spent(self, probe: str, step: int, seconds: float) -> None:
        """Tell what a run of `probe` at `step` has cost."""
        self._last[probe] = step
        self._costs[probe].append(seconds)
        self._governed += seconds

    def adjust(self, step_seconds: float) -> None:
        """Set the intervals anew; `step_seconds` is what a step takes without the SDK."""
        if step_seconds <= 0:
            return
        loads = {
            name: statistics.median(costs) / (self._intervals[name] * step_seconds) if costs else 0.0
            for name, costs in self._costs.items()
        }
        frames = loads.pop(self.FRAMES)
        meter = self._meter
        fixed = (meter.sdk_seconds - self._governed) / meter.training_seconds if meter.training_seconds > 0 else 0.0
        budget = max(self._budget - max(fixed, 0.0), self._budget / 2)
        excess = max(1.0, meter.ratio / self._budget) ** 2
        stretch = max(1.0, sum(loads.values()) / max(budget - frames, budget / 4)) * excess
        self._stretch = dict.fromkeys(loads, stretch)
        self._stretch[self.FRAMES] = min(self.MOST_FRAMES, max(1.0, frames / (0.75 * budget)) * excess)
