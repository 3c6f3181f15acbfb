"""Where a run's loss was heading before a decision: the baseline that an improvement is measured against.

A plain before/after difference pays for whatever happens while the network improves anyway, so the trend that was
there is carried on and only what lies below it counts. The trend is fitted to the logarithm of the loss (a learning
curve is straighter there) by Theil-Sen, which a few wild windows cannot bend, and carried on *damped*: its speed dies
away over DAMPING times the stretch it was fitted to, so in all it credits the run with that share of the fall that was
seen. `python -m tamiyo.evaluation.lab.projections` says how far this is from what runs without Tamiyo really did.
A loss that was rising is projected flat: nobody is paid for a rise that did not come.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

MIN_POINTS = 3  # two points always lie on a line, so nothing would be known of the noise
DAMPING = 0.7  # of 1, .7, .5, .35 and .25 the one with the least bias that does not credit drift on average
MAD_TO_SIGMA = 1.4826  # median absolute deviation to standard deviation, for a normal distribution


@dataclass(frozen=True, slots=True)
class Projection:
    """A damped trend of log loss from `origin` on, in the clock's unit."""

    origin: float
    level: float
    """Log loss at the origin."""
    slope: float
    """Log loss a clock unit at the origin; never above 0."""
    horizon: float
    """Clock units over which the slope dies away: DAMPING times the stretch that was seen."""
    noise: float
    """Standard deviation of one window about the trend, in log loss; robust."""
    points: int

    @classmethod
    def fit(cls, times: Sequence[float], losses: Sequence[float], origin: float) -> Self | None:
        """Fit to losses at increasing `times` up to `origin`.

        Returns None where nothing can be said: fewer than MIN_POINTS positive losses, or no time between them.
        """
        pairs = [(time, loss) for time, loss in zip(times, losses, strict=True) if loss > 0 and math.isfinite(loss)]
        if len(pairs) < MIN_POINTS or pairs[-1][0] <= pairs[0][0]:
            return None
        t = np.array([time - origin for time, _ in pairs])
        y = np.log([loss for _, loss in pairs])
        first, second = np.triu_indices(len(t), 1)
        apart = t[second] > t[first]
        slopes = (y[second] - y[first])[apart] / (t[second] - t[first])[apart]
        slope = min(0.0, float(np.median(slopes)))
        level = float(np.median(y - slope * t))
        noise = MAD_TO_SIGMA * float(np.median(np.abs(y - level - slope * t)))
        return cls(origin, level, slope, DAMPING * float(t[-1] - t[0]), noise, len(pairs))

    def log_loss(self, time: float) -> float:
        """Return the projected log loss at a clock value at or after the origin."""
        return self.level + self.slope * self.horizon * -math.expm1(-max(0.0, time - self.origin) / self.horizon)

    def loss(self, time: float) -> float:
        """Return the projected loss at a clock value at or after the origin."""
        return math.exp(self.log_loss(time))

    @property
    def margin(self) -> float:
        """Log loss by which the level itself may be off: a gain smaller than this is not credited."""
        return self.noise / math.sqrt(self.points)
