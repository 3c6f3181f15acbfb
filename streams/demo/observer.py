"""Follows every topic of an installation and keeps what a report needs."""

import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from tamiyo.schemas import topics
from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome
from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.learning import RewardAnalysis
from tamiyo.schemas.record import Record
from tamiyo.schemas.telemetry import ModelPerformance

POLL_S = 0.2


class Observer:
    """Counts records by topic and run, and keeps the newest decision, outcome and reward under each id.

    Records under one id count once: a restarted stage may publish an output again, with the same content.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        names: TopicNames,
        on_record: Callable[[topics.Topic, Record], None] | None = None,
    ) -> None:
        self.records: Counter[str] = Counter()
        self.layer_signals = 0
        self.dead_letters = 0
        self.late = 0
        self.ids: dict[str, set[str]] = {topic.name: set() for topic in topics.CATALOGUE}
        self.decisions: dict[str, AdaptationDecision] = {}
        self.outcomes: dict[str, AdaptationOutcome] = {}
        self.rewards: dict[str, RewardAnalysis] = {}
        self.performance: dict[str, ModelPerformance] = {}
        self.finished_graphs: set[str] = set()
        self.policy_versions: set[int] = set()
        self.policy_updates = 0
        self._names = names
        self._on_record = on_record
        self._stop = threading.Event()
        self._reader = PartitionReader(kafka, options={"topic.metadata.refresh.interval.ms": 1_000})
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._reader.close()

    def _run(self) -> None:
        names = {
            self._names.full(name)
            for topic in topics.CATALOGUE
            for name in (topic.name, topic.dead_letters, topic.late)
        }
        found = self._reader.topics()
        self._reader.assign({(name, number): 0 for name in names & found.keys() for number in found[name]})
        while not self._stop.is_set():
            for message in self._reader.poll(timeout_s=POLL_S):
                name = self._names.bare(message.topic() or "")
                if name.endswith(".dlq"):
                    self.dead_letters += 1
                elif name.endswith(".late"):
                    self.late += 1
                else:
                    self._take(topics.BY_NAME[name], message.value())

    def _take(self, topic: topics.Topic, value: bytes | None) -> None:
        try:
            record: Any = decode(value, topic.record)
        except SchemaError:
            return  # the stage that reads this topic rejects it, and its dead letter is counted
        self.records[topic.name] += 1
        if topic is topics.SIGNALS:
            self.layer_signals += len(record.layer_id)
        elif topic is topics.GRAPHS:
            self.ids[topic.name].add(record.graph_id)
            if record.final:
                self.finished_graphs.add(record.run_id)
        elif topic is topics.WINDOWS:
            self.ids[topic.name].add(record.window_id)
        elif topic is topics.DECISIONS:
            self.decisions.setdefault(record.decision_id, record)
            self.policy_versions.add(record.policy_version)
        elif topic is topics.OUTCOMES:
            self.outcomes.setdefault(record.decision_id, record)
        elif topic is topics.REWARDS:
            known = self.rewards.get(record.decision_id)
            self.ids[topic.name].add(record.analysis_id)
            if known is None or known.revision < record.revision:
                self.rewards[record.decision_id] = record
        elif topic is topics.EXPERIENCE:
            self.ids[topic.name].add(f"{record.experience_id}:{record.revision}")
        elif topic is topics.CHECKPOINTS:
            self.policy_updates = max(self.policy_updates, record.updates)
        elif topic is topics.MODEL_PERFORMANCE:
            self.performance[record.run_id] = record
        if self._on_record is not None:
            self._on_record(topic, record)
