"""Records to Kafka without ever holding up training."""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing

import pytest

from tamiyo.host._client.publisher import KafkaPublisher
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.codec import encode
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.telemetry import CacheHitRates
from tamiyo.schemas.topics import CACHE_HIT_RATES, TOPOLOGY
from tamiyo.streams.admin.brokers import EmbeddedBroker
from tamiyo.streams.admin.topics import Topics
from tests.support.factories import make_topology
from tests.support.kafka_log import KafkaLog

NOWHERE = KafkaSettings(bootstrap_servers="127.0.0.1:1")  # no broker there


def frame(step: int) -> CacheHitRates:
    return CacheHitRates(
        run_id="run-1", step=step, time_ms=1, hits=1, misses=1, evictions=0, hit_rate=0.5, entries=1, capacity=2
    )


def test_records_arrive_in_order_under_the_runs_key(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog
) -> None:
    with closing_publisher(kafka, names) as publisher:
        for step in range(20):
            publisher.publish(CACHE_HIT_RATES, lambda step=step: frame(step))  # type: ignore[misc]
        assert publisher.flush(10)
        assert (publisher.published, publisher.dropped) == (20, 0)
    read = kafka_log.read(CACHE_HIT_RATES.name)
    assert [each.record(CacheHitRates).step for each in read] == list(range(20))
    assert {each.key for each in read} == {b"run-1"}


def closing_publisher(kafka: KafkaSettings, names: TopicNames, capacity: int = 100) -> "closing[_Closable]":
    return closing(_Closable(kafka, names, capacity))


class _Closable(KafkaPublisher):
    def __init__(self, kafka: KafkaSettings, names: TopicNames, capacity: int) -> None:
        super().__init__("run-1", kafka, names, capacity=capacity)

    def close(self, timeout_s: float = 5.0) -> None:
        super().close(timeout_s)


@pytest.mark.kafka
def test_a_run_stays_on_its_partition_though_partitions_are_added(
    real_kafka: str, names: TopicNames, open_log: Callable[[KafkaSettings], KafkaLog]
) -> None:
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    topics = Topics(kafka, names, (CACHE_HIT_RATES,))
    topics.create(partitions=1)
    with closing_publisher(kafka, names) as publisher:
        publisher.publish(CACHE_HIT_RATES, lambda: frame(1))
        assert publisher.flush(20)
        topics.grow(64)
        other = AwaitedProducer(kafka)  # whoever connects now chooses another partition for the key
        other.produce(names.full(CACHE_HIT_RATES.name), encode(frame(2)), b"run-1")
        other.flush()
        publisher._producer.list_topics(names.full(CACHE_HIT_RATES.name), timeout=10)
        publisher.publish(CACHE_HIT_RATES, lambda: frame(3))
        assert publisher.flush(20)
    found = {each.record(CacheHitRates).step: each.partition for each in open_log(kafka).read(CACHE_HIT_RATES.name)}
    assert (found[1], found[3]) == (0, 0)
    assert found[2] != 0


def test_an_invalid_record_costs_no_other(kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog) -> None:
    def broken() -> Record:
        return CacheHitRates(**{**frame(1).model_dump(), "hit_rate": 7.0})

    with closing_publisher(kafka, names) as publisher:
        publisher.publish(CACHE_HIT_RATES, broken)
        publisher.publish(CACHE_HIT_RATES, lambda: frame(2))
        assert publisher.flush(10)
        assert (publisher.published, publisher.dropped) == (1, 1)
    assert [each.record(CacheHitRates).step for each in kafka_log.read(CACHE_HIT_RATES.name)] == [2]


def test_a_record_that_is_too_large_is_dropped_with_one_warning(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, caplog: pytest.LogCaptureFixture
) -> None:
    small = make_topology(1)
    layers = [
        small.layers[0].model_copy(update={"layer_id": f"{index:0200}", "spec": "s" * 500}) for index in range(9_000)
    ]
    large = small.model_copy(update={"layers": layers})
    with closing_publisher(kafka, names) as publisher:
        for _ in range(2):
            publisher.publish(TOPOLOGY, lambda: large)
        publisher.publish(CACHE_HIT_RATES, lambda: frame(2))
        assert publisher.flush(20)
        assert (publisher.published, publisher.dropped) == (1, 2)
    (warning,) = [each.getMessage() for each in caplog.records]
    assert warning.startswith(f"a record for {TOPOLOGY.name} was dropped")
    assert len(kafka_log.read(CACHE_HIT_RATES.name)) == 1


def test_without_a_broker_records_are_dropped_and_counted_with_one_warning(
    names: TopicNames, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with closing_publisher(NOWHERE, names, capacity=10) as publisher:
        for step in range(50):
            publisher.publish(CACHE_HIT_RATES, lambda step=step: frame(step))  # type: ignore[misc]
        assert not publisher.flush(0.3)
        publisher.close(0.1)
        assert publisher.published == 0
        assert publisher.dropped == 50
    warnings = [each.getMessage() for each in caplog.records if "Kafka is unreachable" in each.getMessage()]
    assert len(warnings) == 1
    assert capfd.readouterr().err == ""


def test_a_dead_server_of_two_is_no_outage_and_hides_none(names: TopicNames, caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker())
        both = KafkaSettings(bootstrap_servers=f"{NOWHERE.bootstrap_servers},{broker.bootstrap_servers}")
        Topics(both, names).touch()
        with closing_publisher(both, names) as publisher:
            publisher.publish(CACHE_HIT_RATES, lambda: frame(1))
            assert publisher.flush(20)
            assert caplog.messages == []
            stack.close()
            deadline = time.monotonic() + 30
            while not caplog.messages and time.monotonic() < deadline:
                time.sleep(0.05)
            assert "Kafka is unreachable; training continues without it" in caplog.text


def test_a_full_queue_does_not_wait(names: TopicNames) -> None:
    with closing_publisher(NOWHERE, names, capacity=1) as publisher:
        slow = time.monotonic() + 0.5

        def wait() -> Record:
            time.sleep(max(0.0, slow - time.monotonic()))
            return frame(0)

        started = time.monotonic()
        for _ in range(1000):
            publisher.publish(CACHE_HIT_RATES, wait)
        assert time.monotonic() - started < 0.4
        assert publisher.dropped >= 998
        publisher.close(0.0)


def test_records_after_the_end_are_dropped(kafka: KafkaSettings, names: TopicNames) -> None:
    with closing_publisher(kafka, names) as publisher:
        publisher.close()
        publisher.publish(CACHE_HIT_RATES, lambda: frame(1))
        assert publisher.dropped == 1
