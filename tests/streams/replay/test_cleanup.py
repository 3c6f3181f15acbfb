"""A replay's topics and groups are removed, also while its last worker is leaving, and no others."""

import threading
import time
import uuid

import pytest
from confluent_kafka import Consumer

from tamiyo.schemas.errors import BrokerError, ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import SIGNALS
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.replay import cleanup as replay_removal
from tamiyo.streams.replay.cleanup import discard, groups_under
from tamiyo.streams.stages.registry import STAGES

LIVE = TopicNames(prefix="live.")

pytestmark = pytest.mark.kafka


@pytest.fixture
def left(real_kafka: str) -> tuple[KafkaSettings, TopicNames, Consumer]:
    """A replay's topics, and a member of one of its groups."""
    kafka, names = KafkaSettings(bootstrap_servers=real_kafka), TopicNames(prefix=f"t{uuid.uuid4().hex[:8]}.")
    Topics(kafka, names).create(partitions=1, retention_ms=-1)
    member = Consumer(kafka.librdkafka(**{"group.id": names.full(STAGES["windows"].group)}))
    member.subscribe([names.full(SIGNALS.name)])
    deadline = time.monotonic() + 30
    while not member.assignment():
        assert time.monotonic() < deadline
        member.poll(0.1)
    return kafka, names, member


def test_a_member_that_is_leaving_is_waited_for(left: tuple[KafkaSettings, TopicNames, Consumer]) -> None:
    kafka, names, member = left
    leaving = threading.Timer(1.5, member.close)
    leaving.start()
    assert discard(names.prefix, kafka, LIVE) > 0
    leaving.join()
    assert groups_under(kafka, names) == []


def test_a_member_that_stays_is_an_error(
    left: tuple[KafkaSettings, TopicNames, Consumer], monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka, names, member = left
    monkeypatch.setattr(replay_removal, "LEAVING_S", 1.0)
    with pytest.raises(BrokerError, match="could not be removed: Broker: The group is not empty"):
        discard(names.prefix, kafka, LIVE)
    member.close()


def test_topics_of_no_replay_are_refused(real_kafka: str, names: TopicNames) -> None:
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    Topics(kafka, names).create(partitions=1)
    with pytest.raises(ConfigurationError, match="was not created by a replay"):
        discard(names.prefix, kafka, LIVE)
    with pytest.raises(ConfigurationError, match="the installation's own"):
        discard(LIVE.prefix, kafka, LIVE)
