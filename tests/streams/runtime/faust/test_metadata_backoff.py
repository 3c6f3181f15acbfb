"""A client whose broker is away retries a few times a second."""

import asyncio
import logging
import time

import pytest
from aiokafka import AIOKafkaProducer

from tamiyo.streams.admin.brokers import EmbeddedBroker
from tamiyo.streams.runtime.faust.metadata_backoff import RETRY_S, back_off_metadata


def test_a_client_whose_broker_went_away_does_not_spin(caplog: pytest.LogCaptureFixture) -> None:
    seconds = 1.5

    async def scene() -> None:
        broker = EmbeddedBroker()
        producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, request_timeout_ms=60_000)
        back_off_metadata(producer.client)
        await producer.start()
        await producer.send_and_wait("somewhere", b"while it is there")
        broker.stop()
        sending = asyncio.create_task(producer.send_and_wait("somewhere", b"while it is away"))
        await asyncio.sleep(0.5)
        caplog.clear()
        began = time.monotonic()
        await asyncio.sleep(seconds)
        assert time.monotonic() - began < 2 * seconds
        assert not sending.done()
        sending.cancel()
        producer._sender._sender_task.cancel()
        producer._closed = True
        await producer.client.close()

    with caplog.at_level(logging.ERROR, "aiokafka"):
        asyncio.run(scene())
    attempts = sum("Unable connect" in record.getMessage() for record in caplog.records)
    assert 1 <= attempts <= 2 * seconds / RETRY_S + 2
