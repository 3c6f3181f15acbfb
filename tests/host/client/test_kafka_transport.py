"""The default transport carries one run."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tamiyo.host import KafkaTransport
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.telemetry import CacheHitRates
from tamiyo.schemas.topics import CACHE_HIT_RATES
from tamiyo.streams.admin.topics import Topics
from tests.support.runs import RUN, settings

NOWHERE = KafkaSettings(bootstrap_servers="127.0.0.1:1")  # no broker there


@contextmanager
def opened(kafka: KafkaSettings, names: TopicNames) -> Iterator[KafkaTransport]:
    transport = KafkaTransport(kafka, names)
    transport.open(RUN, settings(connect_timeout_s=5.0 if kafka is not NOWHERE else 0.0), lambda _: None)
    try:
        yield transport
    finally:
        transport.close(5.0 if kafka is not NOWHERE else 0.0)


def test_records_are_delivered_before_it_is_closed(kafka: KafkaSettings, names: TopicNames) -> None:
    Topics(kafka, names).touch()
    frame = CacheHitRates(
        run_id=RUN, step=1, time_ms=1, hits=0, misses=0, evictions=0, hit_rate=1, entries=0, capacity=1
    )
    with opened(kafka, names) as transport:
        transport.publish(CACHE_HIT_RATES, lambda: frame)
        assert transport.connected
        assert transport.awaits_decisions
    assert (transport.published, transport.dropped) == (1, 0)
    assert transport.busy_seconds > 0


def test_it_carries_one_run(names: TopicNames) -> None:
    with opened(NOWHERE, names) as transport, pytest.raises(ConfigurationError, match="carries a run already"):
        transport.open("run-2", settings(), lambda _: None)


def test_before_it_is_opened_there_is_nothing(names: TopicNames) -> None:
    transport = KafkaTransport(NOWHERE, names)
    assert (transport.published, transport.dropped, transport.busy_seconds) == (0, 0, 0.0)
    assert (transport.connected, transport.awaits_decisions, transport.receive()) == (False, False, ())
    transport.close(0.0)
