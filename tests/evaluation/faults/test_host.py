"""The hosts of a fault run read the decisions of every partition, also of those that are added."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tamiyo.evaluation.faults.host import Host
from tamiyo.evaluation.faults.ledger import Ledger
from tamiyo.schemas.adaptation import Action, AdaptationDecision
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.codec import encode
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.record import Tensor
from tamiyo.schemas.topics import DECISIONS
from tamiyo.streams.admin.topics import Topics


def decision(name: str) -> AdaptationDecision:
    action = Action(type="optimize_parameters", layer_id="layers.1")
    return AdaptationDecision(
        run_id="run", decision_id=name, graph_id=name, step=0, time_ms=0, type="optimize_parameters",
        layer_id="layers.1", proposed=action, confidence=1, uncertainty=0, urgency=0, predicted_reward=0, value=0,
        method="policy", policy_version=0, seed=0, temperature=1, layers=[], kinds=[], action_index=1, mask=b"",
        probabilities=Tensor.of([1.0]), log_probability=0, entropy=0,
    )  # fmt: skip


class Installation:
    """Publishes decisions, and a host that executes them."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        Topics(kafka, names).touch()
        self.telemetry: Any = SimpleNamespace(partitions=2, sent_at={}, clock=lambda partition: 0)
        self.ledger = Ledger()
        self.host = Host(kafka, names, self.ledger, self.telemetry)
        self._topic, self._producer = names.full(DECISIONS.name), AwaitedProducer(kafka)

    def decide(self, name: str, partition: int) -> None:
        self._producer.produce(self._topic, encode(decision(name)), "run", partition=partition)
        self._producer.flush()

    def executed(self, count: int) -> list[str]:
        deadline = time.monotonic() + 30
        while len(self.ledger.executions) < count:
            assert time.monotonic() < deadline, self.ledger.executions
            time.sleep(0.05)
        return [each.decision_id for each in self.ledger.executions]


@pytest.fixture
def installation(kafka: KafkaSettings, names: TopicNames) -> Iterator[Installation]:
    found = Installation(kafka, names)
    found.host.start()
    yield found
    found.host.stop()


def test_a_decision_is_executed_once(installation: Installation) -> None:
    for name in ("one", "one", "two"):
        installation.decide(name, 0)
    installation.decide("three", 1)
    assert sorted(installation.executed(3)) == ["one", "three", "two"]


def test_a_decision_on_an_added_partition_is_executed_and_none_before_it_again(installation: Installation) -> None:
    installation.decide("before", 1)
    installation.executed(1)
    installation.decide("after", 3)
    installation.telemetry.partitions = 4
    installation.decide("last", 1)
    assert sorted(installation.executed(3)) == ["after", "before", "last"]
