"""Commands wait for a broker that does not answer yet, say so, and give up in the end."""

import time
from collections.abc import Iterator

import pytest

from tamiyo.schemas.connection import Connection, ConnectionFailure
from tamiyo.schemas.errors import BrokerError, BrokerRefused
from tamiyo.schemas.kafka import KafkaSettings
from tamiyo.streams.admin.broker_wait import wait_for_broker
from tamiyo.streams.admin.brokers import EmbeddedBroker

NOWHERE = KafkaSettings(bootstrap_servers="127.0.0.1:1")


def answers(monkeypatch: pytest.MonkeyPatch, *found: ConnectionFailure | None) -> Iterator[ConnectionFailure | None]:
    left = iter(found)
    monkeypatch.setattr(Connection, "trouble", lambda self, timeout_s: next(left))
    return left


def test_a_broker_that_answers_is_not_waited_for(embedded: EmbeddedBroker) -> None:
    told: list[str] = []
    kafka = KafkaSettings(bootstrap_servers=embedded.bootstrap_servers)
    assert wait_for_broker(kafka, 0.0, tell=told.append) is kafka
    assert told == []


def test_one_that_comes_up_meanwhile_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    away = ConnectionFailure("Connection refused", False)
    answers(monkeypatch, away, away, None)
    assert wait_for_broker(NOWHERE, 60, tell=told.append) is NOWHERE
    assert len(told) == 2
    assert told[0].startswith("no broker answers yet at 127.0.0.1:1 (Connection refused); giving up in ")


def test_a_refusal_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    left = answers(monkeypatch, ConnectionFailure("wrong password", True), None)
    with pytest.raises(BrokerRefused, match="wrong password"):
        wait_for_broker(NOWHERE, 60, tell=told.append)
    assert told == []
    assert list(left) == [None]


def test_patience_ends_and_is_a_setting(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TAMIYO_COMMAND_PATIENCE_S", "3")
    began = time.monotonic()
    with pytest.raises(BrokerError, match=r"no broker is reachable at 127\.0\.0\.1:1"):
        wait_for_broker(NOWHERE)
    assert 2.5 < time.monotonic() - began < 15
    assert "tamiyo: no broker answers yet at 127.0.0.1:1" in capsys.readouterr().err
