"""The default transport: one run, and one line on whether it is connected."""

import logging
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


def test_without_logging_one_line_reports_the_missing_connection(
    names: TopicNames, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with opened(NOWHERE, names):
        pass
    captured = capsys.readouterr()
    assert captured.err == (
        f"tamiyo: run {RUN} is not connected to 127.0.0.1:1; training continues, connecting is retried\n"
    )
    assert captured.out == ""


def test_without_logging_one_line_reports_the_connection(
    kafka: KafkaSettings, names: TopicNames, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Topics(kafka, names).touch()
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with opened(kafka, names):
        pass
    assert capsys.readouterr().err == f"tamiyo: run {RUN} is connected to {kafka.bootstrap_servers}\n"


def test_with_logging_nothing_is_printed(
    names: TopicNames, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(NOWHERE, names):
        pass
    assert capsys.readouterr().err == ""
    assert f"run {RUN} is not connected" in caplog.text
