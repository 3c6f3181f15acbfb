"""The training side with a schema registry that is down, slow or wrong: records wait or are dropped."""

import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tamiyo.host._client.publisher import KafkaPublisher
from tamiyo.host._client.receiver import KafkaReceiver
from tamiyo.schemas.client.registry import Registry, RegistrySettings
from tamiyo.schemas.client.subjects import Subjects, schema_text, subject
from tamiyo.schemas.codec import encode, use_registry
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.telemetry import CacheHitRates
from tamiyo.schemas.topics import CACHE_HIT_RATES, CATALOGUE, DECISIONS
from tamiyo.streams.admin.topics import Topics
from tests.support.kafka_log import KafkaLog
from tests.support.registry_server import RegistryServer
from tests.support.runs import RUN, decision


@pytest.fixture
def server(names: TopicNames) -> Iterator[RegistryServer]:
    """A registry with the catalogue's schemas, used by this process."""
    with RegistryServer() as running:
        for topic in CATALOGUE:
            running.add(subject(topic.record, names), schema_text(topic.record))
        use_registry(Subjects(Registry(RegistrySettings(url=running.url)), names))
        yield running
    use_registry(None)


def frame(step: int) -> CacheHitRates:
    return CacheHitRates(
        run_id=RUN, step=step, time_ms=1, hits=1, misses=1, evictions=0, hit_rate=0.5, entries=1, capacity=2
    )


def publish(publisher: KafkaPublisher, count: int) -> float:
    """Hand over frames; return the longest that one took, s."""
    longest = 0.0
    for step in range(count):
        began = time.perf_counter()
        publisher.publish(CACHE_HIT_RATES, lambda step=step: frame(step))  # type: ignore[misc]
        longest = max(longest, time.perf_counter() - began)
    return longest


def test_records_wait_for_an_unreachable_registry(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, server: RegistryServer
) -> None:
    server.failure = (503, b"starting")
    with closing(_Publisher(RUN, kafka, names, capacity=10)) as publisher:
        publish(publisher, 30)
        assert not publisher.flush(0.2)
        assert (publisher.published, publisher.dropped >= 19) == (0, True)
        server.failure = None
        assert publisher.flush(20)
        assert publisher.published + publisher.dropped == 30
        kept = publisher.published
    read = kafka_log.read(CACHE_HIT_RATES.name)
    assert [each.record(CacheHitRates).step for each in read] == list(range(kept))
    assert all((each.value or b"")[:1] == b"\0" for each in read)


class _Publisher(KafkaPublisher):
    def close(self, timeout_s: float = 5.0) -> None:
        super().close(timeout_s)


def test_a_registry_that_stays_unreachable_blocks_nothing(kafka: KafkaSettings, names: TopicNames) -> None:
    # It accepts the connection and never responds: the worst case.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        use_registry(Subjects(Registry(RegistrySettings(url=url, timeout_s=2.0)), names))
        try:
            publisher = KafkaPublisher(RUN, kafka, names, capacity=10)
            assert publish(publisher, 100) < 1.0  # microseconds, on a machine that does nothing else
            began = time.monotonic()
            publisher.close(0.1)
            assert time.monotonic() - began < 10.0
            while publisher.dropped < 100 and time.monotonic() - began < 20.0:
                time.sleep(0.01)  # the record in hand is given up when its question is
            assert (publisher.published, publisher.dropped) == (0, 100)
        finally:
            use_registry(None)


def test_an_unregistered_schema_is_requested_once_and_its_records_dropped(
    kafka: KafkaSettings, names: TopicNames, server: RegistryServer
) -> None:
    server.subjects.clear()
    with closing(_Publisher(RUN, kafka, names, capacity=100)) as publisher:
        publish(publisher, 50)
        assert publisher.flush(20)
        assert (publisher.published, publisher.dropped) == (0, 50)
    assert len(server.requests) == 1


def test_decisions_wait_for_an_unreachable_registry(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, server: RegistryServer
) -> None:
    Topics(kafka, names).touch()
    data = encode(decision("mine"))
    use_registry(Subjects(Registry(RegistrySettings(url=server.url)), names))  # a host that has seen no schema yet
    with closing(KafkaReceiver(RUN, kafka, names, connect_timeout_s=5.0)) as receiver:
        server.failure = (503, b"down")
        kafka_log.publish_bytes(DECISIONS, [(RUN.encode(), data)])
        deadline = time.monotonic() + 20
        requests = len(server.requests)
        while len(server.requests) == requests and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(receiver.receive()) == []
        server.failure = None
        arrived: list[object] = []
        while not arrived and time.monotonic() < deadline:
            arrived += receiver.receive()
            time.sleep(0.01)
    assert arrived == [decision("mine")]
