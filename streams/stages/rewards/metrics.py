"""Prometheus metrics of the rewards stage."""

from functools import partial

from prometheus_client import Gauge

from tamiyo.streams.stages.rewards.correlation import SERIES, CorrelationDetector

detector = CorrelationDetector()
"""Shared by all partitions of the process."""

CORRELATION = Gauge(
    "tamiyo_reward_component_correlation",
    "Correlation of a reward component with the measured improvement (predicted_reward: with the reward) over the "
    "latest executed adaptations; NaN below ten of them.",
    ["component"],
)
for _series in SERIES:
    # Computed when it is scraped: nothing is spent on it while records are processed.
    CORRELATION.labels(_series).set_function(partial(detector.correlation, _series))
