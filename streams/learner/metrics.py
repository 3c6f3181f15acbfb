"""Prometheus metrics of the learner."""

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram

UPDATES = Counter(
    "tamiyo_learner_updates_total",
    "Updates of the policy: accepted, or rolled_back to the incumbent.",
    ["result"],
)
EXPERIENCES = Counter(
    "tamiyo_learner_experiences_total", "Experiences taken: fresh, revised, repeated or rejected.", ["result"]
)
REJECTED = Counter(
    "tamiyo_learner_rejected_total", "Experiences and messages that could not be learned from.", ["reason"]
)
VERSION = Gauge("tamiyo_learner_policy_version", "Newest policy version released.")
UPDATE_SECONDS = Histogram(
    "tamiyo_learner_update_seconds",
    "Time of one update, without storing the checkpoint.",
    buckets=(0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0),
)
WAITING = Gauge("tamiyo_learner_waiting_experiences", "Fresh experiences that no update has seen.")
LAG = Gauge("tamiyo_learner_lag_messages", "Messages of the experience topic not yet read.", ["partition"])
LOSSES = Gauge("tamiyo_learner_losses", "Means over the last accepted update; names as in cleanrl's losses/.", ["loss"])
CHARTS = Gauge("tamiyo_learner_charts", "State of learning after the last update, rolled back or not.", ["chart"])


def show(metrics: Mapping[str, float]) -> None:
    """Set the gauges from an update's metrics, `losses/...` and `charts/...`."""
    for name, value in metrics.items():
        group, _, label = name.partition("/")
        (LOSSES if group == "losses" else CHARTS).labels(label).set(value)
