"""Fixtures of the learner's tests."""

from pathlib import Path

import pytest

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.learner import loop as module
from tests.streams.learner.bench import Bench
from tests.support.experiences import BLUEPRINTS
from tests.support.kafka_log import KafkaLog


@pytest.fixture
def bench(
    tmp_path: Path, kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> Bench:
    monkeypatch.setattr(module.blueprints, "names", lambda: BLUEPRINTS)
    return Bench(tmp_path, kafka, names, kafka_log)
