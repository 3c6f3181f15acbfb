"""Topics on brokers."""

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CATALOGUE, TOPOLOGY, WINDOWS
from tamiyo.streams.admin.brokers import free_ports
from tamiyo.streams.admin.topics import Topics


def test_the_embedded_broker_is_touched(kafka: KafkaSettings, names: TopicNames) -> None:
    topics = Topics(kafka, names)
    assert topics.embedded()
    assert len(topics.missing()) == 3 * len(CATALOGUE)
    assert topics.check()[0] == f"topic {names.prefix}telemetry.execution.kernel_performance does not exist"
    Topics(kafka, names).touch()
    assert topics.missing() == []
    assert topics.check() == []
    assert {each.partitions for each in topics.states()} == {4}
    assert topics.create(partitions=7) == []


def test_a_broker_that_is_not_there() -> None:
    (port,) = free_ports(1)
    topics = Topics(KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}"), TopicNames())
    assert "Connection refused" in str(topics.reachable(0.2))


@pytest.mark.kafka
def test_topics_are_created_as_the_catalogue_says(real_kafka: str, names: TopicNames) -> None:
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    topics = Topics(kafka, names, (WINDOWS, TOPOLOGY))
    assert not topics.embedded()
    assert topics.reachable() is None
    assert len(topics.create(partitions=3)) == 6
    assert topics.create(partitions=3) == []
    assert topics.check() == []
    states = {each.name.removeprefix(names.prefix): each for each in topics.states()}
    assert (states[TOPOLOGY.name].cleanup, states[WINDOWS.name].cleanup) == ("compact", "delete")
    assert states[WINDOWS.name].retention_ms == 7 * 86_400_000
    assert states[WINDOWS.late].retention_ms == 30 * 86_400_000
    assert {each.partitions for each in states.values()} == {3}

    # Somebody made one by hand, otherwise.
    other = TopicNames(prefix=f"{names.prefix}other.")
    wrong = NewTopic(other.full(TOPOLOGY.name), num_partitions=1, config={"cleanup.policy": "delete"})
    admin = AdminClient(kafka.librdkafka())
    admin.create_topics([wrong])[wrong.topic].result(10)
    topics = Topics(kafka, other, (WINDOWS, TOPOLOGY))
    topics.create(partitions=3)
    problems = topics.check()
    assert len(problems) == 2
    assert "has 1 partitions where the others have 3" in problems[0]
    assert "cleanup.policy=delete, but compact is expected" in problems[1]


@pytest.mark.kafka
def test_what_the_broker_refuses_is_an_error(real_kafka: str, names: TopicNames) -> None:
    topics = Topics(KafkaSettings(bootstrap_servers=real_kafka), names, (WINDOWS,))
    with pytest.raises(BrokerError, match="could not be created"):
        topics.create(partitions=1, replication=3)
