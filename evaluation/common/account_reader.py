"""Reads the topics of a running installation and keeps its account."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from confluent_kafka import TopicPartition

from tamiyo.evaluation.common.account import Ledger
from tamiyo.schemas.analysis import HealthSignals
from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.client.stalls import Stalls
from tamiyo.schemas.codec import decode
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import (
    BY_NAME,
    CATALOGUE,
    CHECKPOINTS,
    DECISIONS,
    EXPERIENCE,
    GRAPHS,
    KERNELS,
    PERIODIC_NAMES,
    REWARDS,
    SIGNALS,
)

READ = (GRAPHS, DECISIONS, KERNELS, REWARDS, EXPERIENCE, CHECKPOINTS)
CHECK_S = 30.0  # a partition whose records stay unread from one check to the next has stalled
REQUEST_S = 5.0


class Reader:
    """Reads the pipeline's outputs and keeps the account; polled from the thread that also publishes."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames, ledger: Ledger) -> None:
        self.counts: Counter[str] = Counter()
        self.learned: dict[str, int] = {}
        """The newest checkpoint's offsets of the experience topic."""
        self.policy_version = 0
        self._names = names
        self._ledger = ledger
        self._kafka = kafka
        self._check_at = time.monotonic() + CHECK_S
        rejected = [name for topic in CATALOGUE for name in (topic.dead_letters, topic.late)]
        wanted = {names.full(name) for name in (*(each.name for each in READ), *rejected)}
        with PartitionReader(kafka) as reader:
            topics = reader.topics()
        self._begin([TopicPartition(name, number, 0) for name in wanted & topics.keys() for number in topics[name]])

    def _begin(self, places: list[TopicPartition]) -> None:
        self._reader = PartitionReader(self._kafka, options={"fetch.wait.max.ms": 50})
        self._reader.assign({(place.topic, place.partition): place.offset for place in places})
        self._stalls = Stalls(self._reader.consumer, places)

    def _check_for_stalls(self) -> None:
        """Replace the consumer if it has stalled: records that it misses would count as lost."""
        self._check_at = time.monotonic() + CHECK_S
        if self._stalls.check(REQUEST_S):
            places = self._stalls.places()
            self._reader.close()
            self._begin(places)
            self.counts["stalled"] += 1

    def poll(self, timeout_s: float) -> Iterator[Record]:
        """Read the records that have arrived; yield those for hosts (decisions and kernels)."""
        if time.monotonic() >= self._check_at:
            self._check_for_stalls()
        message: Any
        for message in self._reader.poll(timeout_s=timeout_s):
            name = self._names.bare(message.topic())
            self.counts[name] += 1
            if name.endswith(".dlq"):
                self._ledger.counts["dead"] += 1
                continue
            if name.endswith(".late"):
                self._late(name, message.value())
                continue
            record: Any = decode(message.value(), BY_NAME[name].record)
            if name == GRAPHS.name:
                self._ledger.graph(record.graph_id, record.window_id)
            elif name == DECISIONS.name:
                sent_s = message.timestamp()[1] / 1000
                self._ledger.decision(record.decision_id, record.run_id, record.step, message.value(), sent_s)
                self.counts[f"decided:{record.type}"] += 1
                yield record
            elif name == KERNELS.name:
                yield record
            elif name == CHECKPOINTS.name and record.version >= self.policy_version:
                self.learned, self.policy_version = record.offsets, record.version

    def _late(self, name: str, value: bytes) -> None:
        """Count a late signal: a failure only if the watermark waits for its source.

        There is no order among the telemetry topics: after a restart, errors and cache frames may be read after the
        sources that the watermark waits for have completed their windows.
        """
        sporadic = name == SIGNALS.late and decode(value, HealthSignals).source not in PERIODIC_NAMES
        self._ledger.counts["late_sporadic" if sporadic else "late"] += 1

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()
