"""The SDK's cost to the training loop, and the governor that keeps it within its budget."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from tamiyo.host._common import clock


class OverheadMeter:
    """Splits wall-clock time into training and SDK; time `outside` counts as neither.

    The SDK's hooks are timed. Its other costs (wrapped layers, its threads) are estimated elsewhere and `charge`d: they
    move from training to SDK as if nothing ran in parallel, so that the ratio is an upper bound. librdkafka's threads
    hold no lock that training needs, and are left out. The computation of kernels is training. Time counts from the end
    of the first step on, when all one-time work is done.
    """

    def __init__(self, clock: Callable[[], float] = clock.seconds) -> None:
        """Start at zero; `clock` returns seconds."""
        self.sdk_seconds = 0.0
        """Time in the SDK, seconds."""
        self.training_seconds = 0.0
        """Time of training, seconds."""
        self._clock = clock
        self._since = 0.0
        self._depth = 0
        self.running = False
        """Whether time counts."""

    @property
    def ratio(self) -> float:
        """Time in the SDK divided by time of training; 0 before anything was measured."""
        return self.sdk_seconds / self.training_seconds if self.training_seconds > 0 else 0.0

    def start(self) -> None:
        """Begin to count; a repetition changes nothing."""
        if not self.running:
            self.running, self._since = True, self._clock()

    def stop(self) -> None:
        """Stop counting."""
        self.running = False

    def enter(self) -> float:
        """Enter the SDK; nested calls count once. Return the time, seconds."""
        now = self._clock()
        if self._depth == 0:
            if self.running:
                self.training_seconds += now - self._since
            self._since = now
        self._depth += 1
        return now

    def leave(self) -> float:
        """Return to training. Return the time, seconds."""
        now = self._clock()
        self._depth -= 1
        if self._depth == 0:
            if self.running:
                self.sdk_seconds += now - self._since
            self._since = now
        return now

    def charge(self, seconds: float) -> None:
        """Move `seconds` from training to the SDK."""
        if self.running:
            taken = min(seconds, self.training_seconds)
            self.training_seconds -= taken
            self.sdk_seconds += taken

    def exclude(self, seconds: float) -> None:
        """Count the last `seconds` as neither training nor SDK; call it where they have just passed."""
        self._since += seconds

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Count the time inside the context as neither training nor SDK."""
        self.enter()
        self.leave()
        try:
            yield
        finally:
            self._since = self._clock()


LONG_STEP_SECONDS = 0.005
RISE = 0.8
"""Power of the ratio of two steps' lengths by which the budget rises: at 2 ms, 2 % have become 4.2 %."""
SHORT_STEP_BUDGET = 0.06
"""The largest share that a step is allowed for being short."""
SLOWDOWNS = 15
"""Frames whose slowdowns are compared: a single step varies by more than a frame costs."""


def step_budget(budget: float, step_seconds: float) -> float:
    """Return the overhead that is allowed at a length of the step, as a share of the training time.

    The probes' cost hardly depends on the length of the step, so their share rises as it becomes shorter. The budget
    follows with a power of the ratio, up to `SHORT_STEP_BUDGET`: probes that ran as rarely as an equal share
    demands would miss what the network learns meanwhile.

    Args:
        budget: Overhead that is allowed at steps of `LONG_STEP_SECONDS` and more.
        step_seconds: Length of a step without the SDK.
    """
    return max(budget, min(SHORT_STEP_BUDGET, budget * math.pow(LONG_STEP_SECONDS / step_seconds, RISE)))


class Governor:
    """Decides when a probe is due: at its interval, or more rarely if the probes together would cost too much.

    A probe's load is its cost (median of its last three runs) divided by the training time of its interval. The work of
    every step, and adaptations, cannot wait, so the probes share what these leave of the budget (`step_budget`), at
    least half of it. Frames have priority, because every later stage depends on them: they may use three quarters of
    that share. The other probes use the rest, with their intervals lengthened by a common factor. If the measured
    overhead exceeds the budget, all intervals are lengthened by the square of the excess.

    A sampled step takes longer than others even without what the meter has timed: modules call hooks, and caches have
    lost what training needs. The median difference is a part of the frames' cost.
    """

    FRAMES = "frames"
    MAX_FRAME_FACTOR = 2.0
    """Largest factor for the frames' interval: a window without a frame gets no decision."""

    def __init__(self, meter: OverheadMeter, budget: float, intervals: Mapping[str, int]) -> None:
        """Start with `intervals`, steps by probe, including `FRAMES`; the other probes run on sampled steps only."""
        self._meter = meter
        self._budget = budget
        self._intervals = dict(intervals)
        self._costs: dict[str, deque[float]] = {name: deque(maxlen=3) for name in intervals}
        self._last: dict[str, int] = dict.fromkeys(intervals, 0)
        self._factors: dict[str, float] = dict.fromkeys(intervals, 1.0)
        self._governed = 0.0
        self._slowdowns: deque[float] = deque(maxlen=SLOWDOWNS)
        self._untimed = 0.0

    def due(self, probe: str, step: int) -> bool:
        """Return whether `probe` must run at `step`."""
        return step - self._last[probe] >= self.interval(probe)

    def state_dict(self) -> dict[str, int]:
        """Return the step of each probe's last run."""
        return dict(self._last)

    def resume(self, step: int, saved: Mapping[str, int]) -> None:
        """Go on from a saved step; a probe that `saved` lacks ran last at that step."""
        self._last = {probe: min(int(saved.get(probe, step)), step) for probe in self._last}

    def interval(self, probe: str) -> float:
        """Return the current number of steps between two runs of `probe`."""
        return self._intervals[probe] * self._factors[probe]

    def spent(self, probe: str, step: int, seconds: float) -> None:
        """Record the cost of a run of `probe` at `step`, seconds."""
        self._last[probe] = step
        self._costs[probe].append(seconds)
        self._governed += seconds

    def slowed(self, seconds: float) -> None:
        """Record how much longer a sampled step took than the others of its interval, without what was timed."""
        self._slowdowns.append(seconds)
        self._untimed += self.untimed_seconds

    @property
    def untimed_seconds(self) -> float:
        """What a frame costs in addition to what the meter times, seconds; 0 until there are enough frames."""
        if len(self._slowdowns) < SLOWDOWNS:
            return 0.0
        return max(0.0, statistics.median(self._slowdowns))

    def adjust(self, step_seconds: float) -> None:
        """Compute the intervals anew; `step_seconds` is the time of a step without the SDK."""
        if step_seconds <= 0:
            return
        allowed = step_budget(self._budget, step_seconds)
        loads = {
            name: statistics.median(costs) / (self._intervals[name] * step_seconds) if costs else 0.0
            for name, costs in self._costs.items()
        }
        frames = loads.pop(self.FRAMES) + self.untimed_seconds / (self._intervals[self.FRAMES] * step_seconds)
        meter = self._meter
        fixed = (meter.sdk_seconds - self._governed) / meter.training_seconds if meter.training_seconds > 0 else 0.0
        budget = max(allowed - max(fixed, 0.0), allowed / 2)
        untimed = self._untimed / meter.training_seconds if meter.training_seconds > 0 else 0.0
        excess = max(1.0, (meter.ratio + untimed) / allowed) ** 2
        factor = max(1.0, sum(loads.values()) / max(budget - frames, budget / 4)) * excess
        self._factors = dict.fromkeys(loads, factor)
        self._factors[self.FRAMES] = min(self.MAX_FRAME_FACTOR, max(1.0, frames / (0.75 * budget)) * excess)
