"""Embedded and local brokers."""

from pathlib import Path

import pytest

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.brokers import EmbeddedBroker, LocalKafka, free_ports, is_embedded
from tamiyo.streams.admin.topics import Topics


def test_an_embedded_broker_runs_until_it_is_stopped() -> None:
    with EmbeddedBroker() as broker:
        topics = Topics(KafkaSettings(bootstrap_servers=broker.bootstrap_servers), TopicNames())
        assert topics.reachable() is None
        assert broker.bootstrap_servers.startswith("127.0.0.1:")
    assert topics.reachable(0.3) is not None


def test_embedded_clusters_are_recognised() -> None:
    assert is_embedded("mockCluster55d0")
    assert not is_embedded("AkU3OEVBNTcwNTJENDM2Qg")
    assert not is_embedded(None)


def test_free_ports_differ() -> None:
    assert len(set(free_ports(5))) == 5


def test_a_wrong_kafka_home_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"KAFKA_HOME must hold Kafka's libs/\*\.jar"):
        LocalKafka(tmp_path)
