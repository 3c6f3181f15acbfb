"""Correlate the reward's components with the measured improvement, and the predicted reward with the one learned.

A component that does not correlate with the improvement over many adaptations is a shaped term that teaches the policy
something other than lowering the loss. The specification's target for the predicted reward is above .8. Each task has
its own correlations: over several tasks they would also show how the tasks differ.
"""

import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import correlation
from typing import Final

from prometheus_client import Gauge

from tamiyo.models.learning.example import learned_reward
from tamiyo.schemas.learning import Experience
from tamiyo.streams.stages.rewards.components import WEIGHTS

PREDICTED: Final = "predicted_reward"
SERIES = (*WEIGHTS, PREDICTED)
MIN_ADAPTATIONS = 10  # at 10, chance alone exceeds a correlation of .63 in 5 % of samples
LATEST = 200  # adaptations; at 200, chance reaches .14, and a change of the policy shows within a day of runs
MAX_TASKS = 20  # with 7 series each; task names come from users, and every label value costs memory in Prometheus

UNKNOWN_TASK: Final = "unknown"
MAX_LABEL = 60  # characters; dashboards cut longer legends
_DIGITS = 8  # hexadecimal, of the hash that keeps names apart that are equal once shortened
_UNSAFE = re.compile(r"[^\w .:/+-]")


def task_label(task: str) -> str:
    """Return a task's name as a label value: at most MAX_LABEL letters, digits, spaces and `_.:/+-`.

    A longer name is cut, other characters become `_`, and a hash of the full name follows.

    Example:
        >>> task_label("digits"), task_label(""), task_label("a\\nb")
        ('digits', 'unknown', 'a_b-59900c43')
    """
    if not task:
        return UNKNOWN_TASK
    safe = _UNSAFE.sub("_", task)
    if safe == task and len(task) <= MAX_LABEL:
        return task
    digest = hashlib.blake2b(task.encode(), digest_size=_DIGITS // 2).hexdigest()
    return f"{safe[: MAX_LABEL - 1 - _DIGITS]}-{digest}"


@dataclass(frozen=True, slots=True)
class _Point:
    """What is kept of an experience."""

    revision: int
    components: Mapping[str, float]
    improvement: float
    reward: float
    predicted: float


class CorrelationDetector:
    """Pearson correlations over the latest executed adaptations whose improvement is known."""

    def __init__(self, latest: int = LATEST) -> None:
        """Keep the newest revision of each of the `latest` adaptations, in order of their first experience."""
        self._latest = latest
        self._points: dict[str, _Point] = {}
        """By experience id."""

    def record(self, experience: Experience) -> None:
        """Take an experience with an improvement; it replaces the earlier revisions of the same one."""
        assert experience.improvement is not None
        known = self._points.get(experience.experience_id)
        if known is not None and known.revision > experience.revision:
            return  # read again after a restart
        self._points[experience.experience_id] = _Point(
            experience.revision,
            {name: value for name, value in experience.components.items() if name in WEIGHTS},
            experience.improvement,
            learned_reward(experience),
            experience.predicted_reward,
        )
        if len(self._points) > self._latest:
            del self._points[next(iter(self._points))]

    def forget(self, experience_id: str) -> None:
        """Drop an experience, if it is there."""
        self._points.pop(experience_id, None)

    def correlation(self, series: str) -> float:
        """Return a correlation in [-1, 1].

        Args:
            series: A component's name, correlated with the improvement, or PREDICTED, correlated with the reward that
                the learner learns from.

        Returns:
            NaN for fewer than MIN_ADAPTATIONS adaptations, or if one side never changed.
        """
        points = list(self._points.values())  # a copy: Prometheus asks from another thread
        if series == PREDICTED:
            return _pearson([(each.predicted, each.reward) for each in points])
        return _pearson([(each.components[series], each.improvement) for each in points if series in each.components])


class TaskCorrelations:
    """The correlations of each of the latest tasks, shown by a gauge with the labels `task` and `component`."""

    def __init__(self, gauge: Gauge, *, tasks: int = MAX_TASKS, latest: int = LATEST) -> None:
        """Start without any task, whatever the gauge has shown before.

        Args:
            gauge: Shows the correlations; they are computed when it is scraped.
            tasks: Tasks kept; the one without an adaptation for the longest time is dropped with its labels.
            latest: Adaptations kept of a task.
        """
        self._gauge = gauge
        self._tasks = tasks
        self._latest = latest
        self._detectors: OrderedDict[str, CorrelationDetector] = OrderedDict()
        """By label; the one whose last adaptation is the longest ago comes first."""
        gauge.clear()

    def record(self, experience: Experience) -> None:
        """Take an experience; one that executed nothing, or whose improvement is unknown, has nothing to correlate."""
        if experience.improvement is None:
            return
        label = task_label(experience.task)
        for other, detector in self._detectors.items():
            if other != label:  # an earlier revision, from before the run's topology was known
                detector.forget(experience.experience_id)
        if label not in self._detectors:
            self._add(label)
        self._detectors.move_to_end(label)
        self._detectors[label].record(experience)
        while len(self._detectors) > self._tasks:
            dropped, _ = self._detectors.popitem(last=False)
            for series in SERIES:
                self._gauge.remove(dropped, series)

    def _add(self, label: str) -> None:
        detector = self._detectors[label] = CorrelationDetector(self._latest)
        for series in SERIES:
            # Computed when it is scraped: nothing is spent on it while experiences are read.
            self._gauge.labels(label, series).set_function(partial(detector.correlation, series))


def _pearson(pairs: Sequence[tuple[float, float]]) -> float:
    if len(pairs) < MIN_ADAPTATIONS:
        return math.nan
    first, second = zip(*pairs, strict=True)
    try:
        return correlation(first, second)
    except (ValueError, OverflowError):  # one of them is constant, or values near 1e308; a scrape must not fail
        return math.nan
