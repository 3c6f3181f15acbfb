"""Prometheus metrics of the stages: prefix `tamiyo_`, base units."""

import time
from collections import Counter as Counts
from collections.abc import Iterable
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from tamiyo.schemas.topics import DECISIONS, SIGNALS
from tamiyo.streams.process import steady_clock
from tamiyo.streams.stages.base import Output, Stage

# Narrow around the budgets: 50 ms for intake, 100 ms for a decision.
LATENCY_BUCKETS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05,
    0.065, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
# An event passes four stages, and waits for its window to close.
END_TO_END_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 30, 60, 300, 3600)

RECEIVED = Counter("tamiyo_records_received_total", "Records received by a stage.", ["stage", "topic"])
PUBLISHED = Counter("tamiyo_records_published_total", "Records published by a stage.", ["stage", "topic"])
REJECTED = Counter(
    "tamiyo_records_rejected_total",
    "Records rejected to a dead-letter topic or a late topic.",
    ["stage", "topic", "kind"],
)
REJECT_KINDS = ("unusable", "poison", "late", "too_large")
REPEATED = Counter(
    "tamiyo_records_repeated_total",
    "Outputs suppressed after a restart because they had been published before.",
    ["stage", "topic"],
)
SHED = Counter("tamiyo_layer_signals_shed_total", "Layer signals shed by intake under overload, lowest priority first.")
STAGE_LATENCY = Histogram(
    "tamiyo_stage_latency_seconds",
    "Time from an input's arrival at the stage to the delivery of the output that it completed.",
    ["stage"],
    buckets=LATENCY_BUCKETS,
)
END_TO_END_LATENCY = Histogram(
    "tamiyo_end_to_end_latency_seconds",
    "Time from the newest telemetry in a graph, by event time, to the delivery of its decision.",
    buckets=END_TO_END_BUCKETS,
)
OPEN_RECORDS = Gauge("tamiyo_stage_open_records", "Records received and not yet committed.", ["stage"])
LAG = Gauge(
    "tamiyo_stage_lag_records",
    "Records of the assigned partitions that the stage has not read yet. Those that it has read and holds open, for "
    "example until a window closes, do not count, though their offsets are not committed.",
    ["stage", "topic"],
)
PARTITIONS = Gauge("tamiyo_stage_partitions", "Partitions assigned to this process.", ["stage"])
REBALANCES = Counter(
    "tamiyo_rebalances_total", "Partition assignments received from the group's coordinator.", ["stage"]
)
BATCH_RECORDS = Histogram(
    "tamiyo_stage_batch_records",
    "Records processed in one call of a stage.",
    ["stage"],
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
)
FEED_SECONDS = Counter("tamiyo_stage_busy_seconds_total", "Computing time of a stage.", ["stage"])
VIEW_KEYS = Gauge("tamiyo_view_keys", "Keys in the view of a compacted topic.", ["topic"])
POLICY_VERSION = Gauge("tamiyo_policy_version", "Policy version of the newest decision.", ["stage"])


def create_series(stage: type[Stage]) -> None:
    """Create a stage's series at 0 that count events: Prometheus sees no increase in one that begins at 1."""
    for topic in stage.inputs:
        for kind in REJECT_KINDS:
            REJECTED.labels(stage.name, topic.name, kind)
    for topic in stage.outputs:
        REPEATED.labels(stage.name, topic.name)


def observe_deliveries(stage: str, sent: Iterable[tuple[object, float | None]]) -> None:
    """Count delivered outputs, each with when the input that closed it arrived (`time.perf_counter()`)."""
    delivered = time.perf_counter()
    latency = STAGE_LATENCY.labels(stage)
    published: Counts[str] = Counts()
    for each, received in sent:
        if not isinstance(each, Output):
            continue
        if received is not None:
            latency.observe(delivered - received)
        published[each.topic.name] += 1
        record: Any = each.record
        if each.topic is SIGNALS:
            if record.shed:
                SHED.inc(record.shed)
        elif each.topic is DECISIONS:
            END_TO_END_LATENCY.observe(max(0.0, (steady_clock.time_ms() - record.time_ms) / 1000))
            POLICY_VERSION.labels(stage).set(record.policy_version)
    for topic, count in published.items():
        PUBLISHED.labels(stage, topic).inc(count)
