"""Waiting for a broker: reports each failed attempt, gives up in the end, and at once where waiting cannot help."""

import time
from collections.abc import Iterator

import pytest

from tamiyo.schemas.client.broker_wait import wait_for_broker
from tamiyo.schemas.client.connection import Connection, ConnectionFailure
from tamiyo.schemas.errors import BrokerError, BrokerRefused
from tamiyo.schemas.kafka import KafkaSettings

NOWHERE = KafkaSettings(bootstrap_servers="127.0.0.1:1")
AWAY = ConnectionFailure("Connection refused", False)


class Report:
    """Collects reported attempts."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.left: list[float] = []

    def __call__(self, reason: str, left_s: float) -> None:
        self.reasons.append(reason)
        self.left.append(left_s)


def results(monkeypatch: pytest.MonkeyPatch, *found: ConnectionFailure | None) -> Iterator[ConnectionFailure | None]:
    """Make attempts return `found`, one after the other."""
    left = iter(found)
    monkeypatch.setattr(Connection, "probe", lambda self, timeout_s: next(left))
    return left


def test_a_running_broker_is_not_waited_for(kafka: KafkaSettings) -> None:
    report = Report()
    assert wait_for_broker(kafka, 5.0, report=report)
    assert report.reasons == []


def test_a_broker_that_starts_meanwhile_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report()
    results(monkeypatch, AWAY, AWAY, None)
    assert wait_for_broker(NOWHERE, 60, report=report)
    assert report.reasons == ["Connection refused"] * 2
    assert all(59 < left <= 60 for left in report.left)


def test_a_refusal_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report()
    left = results(monkeypatch, ConnectionFailure("wrong password", True), None)
    with pytest.raises(BrokerRefused, match="wrong password"):
        wait_for_broker(NOWHERE, 60, report=report)
    assert report.reasons == []
    assert list(left) == [None]


def test_it_ends_when_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report()
    left = results(monkeypatch, AWAY, None)
    assert not wait_for_broker(NOWHERE, 60, report=report, stopped=lambda: bool(report.reasons))
    assert list(left) == [None]


def test_it_gives_up_after_the_timeout() -> None:
    report = Report()
    began = time.monotonic()
    with pytest.raises(BrokerError, match=r"no broker is reachable at 127\.0\.0\.1:1"):
        wait_for_broker(NOWHERE, 3, report=report)
    assert 2.5 < time.monotonic() - began < 15
    assert report.reasons
