"""Estimate a gain against the projected trend: what the run's own loss would have been without the adaptation.

A plain before/after difference pays for whatever happens while the network improves anyway, so the trend from before
the adaptation is extrapolated and only what lies below it counts. The trend is fitted to the logarithm of the loss (a
learning curve is straighter there) by Theil-Sen, which a few outlying windows cannot bend, and extrapolated *damped*:
its slope decays over DAMPING times the range it was fitted to, so in all it credits the run with that share of the fall
that was seen. `python -m tamiyo.evaluation.lab.projections` measures the error of this on runs without Tamiyo.
A rising loss is projected flat: an adaptation earns nothing for a rise that did not happen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self

import numpy as np

from tamiyo.streams.stages.rewards.adaptation import ExecutedAdaptation
from tamiyo.streams.stages.rewards.counterfactual import CounterfactualEstimator
from tamiyo.streams.stages.rewards.gain import Gain
from tamiyo.streams.stages.rewards.window_summary import WindowSummary

MIN_POINTS = 3  # two points always define a line, so the noise would be unknown
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
    """Clock units over which the slope decays: DAMPING times the range that was fitted."""
    noise: float
    """Standard deviation of one window about the trend, in log loss; robust."""
    points: int

    @classmethod
    def fit(cls, times: Sequence[float], losses: Sequence[float], origin: float) -> Self | None:
        """Fit a trend.

        Args:
            times: Clock values (steps or ms), increasing, up to `origin`.
            losses: Loss at each of them, in nats; values that are not positive and finite are left out.
            origin: Clock value from which the trend is extrapolated.

        Returns:
            None if no trend can be fitted: fewer than MIN_POINTS losses, or no time between them.
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

    @property
    def margin(self) -> float:
        """Standard error of the level, in log loss: a gain smaller than this is not credited."""
        return self.noise / math.sqrt(self.points)


class ProjectionEstimator:
    """Measures an adaptation by how far the run's loss lies below its projected trend.

    The validation loss is used where it was measured before the adaptation and in the span, else the training loss.
    After the run's next executed adaptation, the gain is shared in proportion to the layers' contributions; windows
    without a contribution are left out, since the two adaptations' effects cannot be separated.
    """

    def __init__(
        self,
        adaptation: ExecutedAdaptation,
        before: Sequence[WindowSummary],
        counterfactual: CounterfactualEstimator,
    ) -> None:
        """Fit the trends.

        Args:
            adaptation: What was executed.
            before: Windows that ended before the adaptation, oldest first.
            counterfactual: Gives this adaptation's share where a later one is in effect too.
        """
        self._next_adaptation_at = adaptation.next_adaptation_at
        self._counterfactual = counterfactual
        self._projections: list[tuple[str, Projection]] = []
        for series in ("validation_loss", "train_loss"):
            history = [(w.middle, loss) for w in before if (loss := getattr(w, series)) is not None]
            projection = Projection.fit([t for t, _ in history], [loss for _, loss in history], adaptation.effective_at)
            if projection is not None:
                self._projections.append((series, projection))

    def gain(self, windows: Sequence[WindowSummary]) -> Gain | None:
        """Return the median gain over `windows`, less the projection's margin, or None if it is unknown."""
        for series, projection in self._projections:
            gains = [
                share * (projection.log_loss(w.middle) - math.log(loss))
                for w in windows
                if (loss := getattr(w, series)) is not None and loss > 0 and (share := self._share(w)) is not None
            ]
            if gains:
                value = median(gains)
                # An error of the projection must not earn; a loss is charged as measured.
                value -= min(projection.margin, max(value, 0.0))
                return Gain(value, projection.noise)
        return None

    def _share(self, window: WindowSummary) -> float | None:
        """Return the part of a window's gain that is this adaptation's, in 0..1; None if it is unknown."""
        if window.end <= self._next_adaptation_at:
            return 1.0
        return self._counterfactual.share(window)
