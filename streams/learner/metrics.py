"""Prometheus metrics of the learner."""

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram

UPDATES = Counter(
    "tamiyo_learner_updates_total",
    "Updates of the policy by result: accepted, or rolled back.",
    ["result"],
)
EXPERIENCES = Counter(
    "tamiyo_learner_experiences_total", "Experiences read by result: fresh, revised, repeated or rejected.", ["result"]
)
REJECTED = Counter(
    "tamiyo_learner_rejected_total", "Experiences and messages that cannot be learned from, by reason.", ["reason"]
)
GATE_FAILURES = Counter(
    "tamiyo_learner_gate_failures_total",
    "Candidates that failed, by gate; of one that moved too far, a shorter step may be released.",
    ["gate"],
)
ROLLBACKS = Counter(
    "tamiyo_learner_rollbacks_total", "Released versions taken back, by who did: canary or operator.", ["by"]
)
REFERENCE = Gauge("tamiyo_learner_reference_version", "Version that the live rewards of newer ones are compared with.")
LIVE_DIFFERENCE = Gauge(
    "tamiyo_learner_live_difference",
    "Reward a decision of the newer versions minus that of the reference: mean, and upper bound at all times.",
    ["bound"],
)
FROZEN = Gauge("tamiyo_learner_frozen", "1 while an operator's order keeps the learner from learning and releasing.")
VERSION = Gauge("tamiyo_learner_policy_version", "Newest policy version released.")
UPDATE_SECONDS = Histogram(
    "tamiyo_learner_update_seconds",
    "Duration of an update, without the checkpoint's storage.",
    buckets=(0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0),
)
WAITING = Gauge("tamiyo_learner_waiting_experiences", "Fresh experiences waiting for an update.")
LAG = Gauge("tamiyo_learner_lag_messages", "Unread messages of the experience topic.", ["partition"])
LOSSES = Gauge("tamiyo_learner_losses", "Means over the last accepted update, named as in cleanrl's losses/.", ["loss"])
CHARTS = Gauge(
    "tamiyo_learner_charts", "State of learning after the last update, also if it was rolled back.", ["chart"]
)
CORRELATION = Gauge(
    "tamiyo_learner_component_correlation",
    "Correlation of a reward component with the measured improvement (predicted_reward: with the reward that is "
    "learned) over a task's latest executed adaptations, for the 20 tasks adapted last; NaN below ten adaptations.",
    ["task", "component"],
)

# Prometheus sees no increase in a series that begins at 1, so those with known labels begin at 0.
for _counter, _values in (
    (UPDATES, ("accepted", "rolled_back")),
    (EXPERIENCES, ("fresh", "revised", "repeated", "rejected")),
    (REJECTED, ("undecodable",)),
    (ROLLBACKS, ("canary", "operator")),
):
    for _value in _values:
        _counter.labels(_value)


def show(metrics: Mapping[str, float]) -> None:
    """Set the gauges from an update's metrics, `losses/...` and `charts/...`."""
    for name, value in metrics.items():
        group, _, label = name.partition("/")
        (LOSSES if group == "losses" else CHARTS).labels(label).set(value)
