"""An outage of Kafka is reported once each time; one dead server of several is none."""

import logging

import pytest
from confluent_kafka import KafkaError

from tamiyo.host._client.outage import Outage

REFUSED = KafkaError(KafkaError._TRANSPORT, "a:1/bootstrap: Connection refused (after 0ms in state CONNECT)")
DOWN = KafkaError(KafkaError._ALL_BROKERS_DOWN, "2/2 brokers are down")


def test_one_server_is_no_outage_and_each_outage_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage(logging.getLogger("tamiyo.test"))
    outage.on_error(REFUSED)
    assert caplog.messages == []
    for _ in range(2):
        outage.on_error(DOWN)
        outage.on_error(DOWN)
        outage.end()
    assert (
        caplog.messages
        == ["Kafka is unreachable; training continues without it: a:1/bootstrap: Connection refused"] * 2
    )
