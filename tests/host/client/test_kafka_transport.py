"""The default transport carries one run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry.sdk.trace import TracerProvider

from tamiyo.host import KafkaTransport
from tamiyo.host._client import kafka_transport
from tamiyo.schemas.adaptation import AdaptationOutcome, OutcomeStatus
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.client.tracing import Traces
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.telemetry import CacheHitRates
from tamiyo.schemas.topics import CACHE_HIT_RATES, DECISIONS, OUTCOMES
from tamiyo.streams.admin.topics import Topics
from tests.support.kafka_log import KafkaLog
from tests.support.runs import RUN, decision, settings

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


def test_an_exporter_that_is_not_there_does_not_stop_training(
    names: TopicNames, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with opened(NOWHERE, names):
        assert "no traces, and training continues: OTEL_TRACES_EXPORTER=zipkin" in caplog.text


def test_an_outcome_goes_on_with_its_decisions_trace(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_transport, "traces", lambda: Traces(TracerProvider()))
    Topics(kafka, names).touch()
    decided = decision("d")
    outcome = AdaptationOutcome(
        run_id=RUN,
        outcome_id="o",
        decision_id=decided.decision_id,
        step=1,
        time_ms=1,
        type=decided.type,
        status=OutcomeStatus.EXECUTED,
        duration_ms=5.0,
    )
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = [("traceparent", f"00-{trace}-b7ad6b7169203331-01".encode()), ("other", None)]
    with opened(kafka, names) as transport:
        producer = AwaitedProducer(kafka)
        producer.produce(names.full(DECISIONS.name), encode(decided), RUN, headers=headers)
        producer.flush()
        deadline = time.monotonic() + 20
        while not transport.receive() and time.monotonic() < deadline:
            time.sleep(0.02)
        transport.publish(OUTCOMES, lambda: outcome)
    (found,) = kafka_log.read(OUTCOMES.name)
    assert found.headers["traceparent"].split("-")[1] == trace
