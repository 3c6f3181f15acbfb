"""Correlate the reward's components with the measured improvement, and the predicted reward with the actual one.

A component that does not correlate with the improvement over many adaptations is a shaped term that teaches the policy
something other than lowering the loss. The specification's target for the predicted reward is above .8.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import StatisticsError, correlation

from tamiyo.schemas.learning import RewardAnalysis
from tamiyo.streams.stages.rewards.components import WEIGHTS
from tamiyo.streams.stages.rewards.status import RewardStatus

PREDICTED = "predicted_reward"
SERIES = (*WEIGHTS, PREDICTED)
MIN_ADAPTATIONS = 10  # at 10, chance alone exceeds a correlation of .63 in 5 % of samples
LATEST = 200  # adaptations; at 200, chance reaches .14, and a change of the policy shows within a day of runs


@dataclass(frozen=True, slots=True)
class _Point:
    """What is kept of an analysis."""

    revision: int
    components: Mapping[str, float]
    improvement: float
    total: float
    predicted: float


class CorrelationDetector:
    """Pearson correlations over the latest executed adaptations whose improvement is known."""

    def __init__(self, latest: int = LATEST) -> None:
        """Keep the newest revision of each of the `latest` adaptations, in order of their first analysis."""
        self._latest = latest
        self._points: dict[str, _Point] = {}
        """By decision id."""

    def record(self, analysis: RewardAnalysis) -> None:
        """Take an analysis; it replaces the earlier revisions of the same decision."""
        if analysis.status != RewardStatus.EXECUTED or analysis.improvement is None:
            return
        known = self._points.get(analysis.decision_id)
        if known is not None and known.revision > analysis.revision:
            return  # recomputed after a restart
        self._points[analysis.decision_id] = _Point(
            analysis.revision, analysis.components, analysis.improvement, analysis.total, analysis.predicted_reward
        )
        if len(self._points) > self._latest:
            del self._points[next(iter(self._points))]

    def correlation(self, series: str) -> float:
        """Return a correlation in [-1, 1].

        Args:
            series: A component's name, correlated with the improvement, or PREDICTED, correlated with the total.

        Returns:
            NaN for fewer than MIN_ADAPTATIONS adaptations, or if one side never changed.
        """
        points = list(self._points.values())
        if series == PREDICTED:
            return _pearson([each.predicted for each in points], [each.total for each in points])
        return _pearson([each.components[series] for each in points], [each.improvement for each in points])


def _pearson(first: Sequence[float], second: Sequence[float]) -> float:
    if len(first) < MIN_ADAPTATIONS:
        return math.nan
    try:
        return correlation(first, second)
    except StatisticsError:  # one of them is constant
        return math.nan
