from collections.abc import Callable, Iterator

import pytest

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.topics import Topics
from tests.streams.admin.embedded import as_real
from tests.streams.admin.installation import Creation, Installation
from tests.support.kafka_log import KafkaLog


@pytest.fixture
def creation() -> Creation:
    """How `installation` makes its topics; a module that needs others overrides it."""
    return Creation()


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.kafka)])
def installation(
    request: pytest.FixtureRequest,
    names: TopicNames,
    creation: Creation,
    open_log: Callable[[KafkaSettings], KafkaLog],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Installation]:
    """On a real Kafka, and on the embedded broker in the place of one."""
    real = request.param == "real"
    servers = request.getfixturevalue("real_kafka") if real else request.getfixturevalue("kafka").bootstrap_servers
    monkeypatch.setenv("TAMIYO_KAFKA_BOOTSTRAP_SERVERS", servers)
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", names.prefix)
    kafka = KafkaSettings(bootstrap_servers=servers)
    topics = Topics(kafka, names, creation.topics)
    topics.create(partitions=creation.partitions, retention_ms=creation.retention_ms)
    if not real:
        as_real(monkeypatch)
    yield Installation(kafka, names, open_log(kafka), creation)
    if real:
        topics.delete()  # hundreds of partitions
