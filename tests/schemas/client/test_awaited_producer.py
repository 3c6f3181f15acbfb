"""Publishing and waiting for delivery."""

import time

import pytest
from confluent_kafka import Message

from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import HEADERS_BYTES, MAX_MESSAGE_BYTES, KafkaSettings, TopicNames

NOWHERE = KafkaSettings(bootstrap_servers="127.0.0.1:1")


def test_messages_are_there_after_a_flush(kafka: KafkaSettings, names: TopicNames) -> None:
    topic, delivered = names.full("test.producer"), list[Message]()
    producer = AwaitedProducer(kafka)
    headers = [("name", b"value"), ("empty", None)]
    producer.produce(topic, b"x", "key", partition=3, headers=headers, timestamp_ms=5_000, on_delivery=delivered.append)
    producer.produce(topic, None, b"key", partition=3)
    producer.flush()
    assert [(each.partition(), each.offset()) for each in delivered] == [(3, 0)]
    with PartitionReader(kafka) as reader:
        first, second = reader.read(reader.ranges(topic))
    assert (first.value(), first.key(), first.timestamp()[1]) == (b"x", b"key", 5_000)
    assert first.headers() == headers
    assert second.value() is None


def test_a_message_that_is_not_delivered_is_raised_once(names: TopicNames) -> None:
    producer = AwaitedProducer(NOWHERE, timeout_s=0.5)
    producer.produce(names.full("test.producer"), b"x")
    turns = 0

    def meanwhile() -> None:
        nonlocal turns
        turns += 1

    began = time.monotonic()
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1 did not accept 1 messages; the first for .*test.producer"):
        producer.flush(meanwhile)
    assert 0.3 < time.monotonic() - began < 10
    assert turns
    producer.flush()  # nothing is left


def test_a_wait_for_delivery_can_be_ended(names: TopicNames) -> None:
    producer = AwaitedProducer(NOWHERE, timeout_s=60)
    producer.produce(names.full("test.producer"), b"x")

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        producer.flush(stop)


def test_a_message_that_is_too_large_is_named(kafka: KafkaSettings, names: TopicNames) -> None:
    producer = AwaitedProducer(kafka)
    with pytest.raises(BrokerError, match=r"cannot publish to .*test\.producer"):
        producer.produce(names.full("test.producer"), b"x" * (MAX_MESSAGE_BYTES + HEADERS_BYTES + 1))


def test_a_full_queue_is_waited_for(kafka: KafkaSettings, names: TopicNames) -> None:
    producer = AwaitedProducer(kafka, options={"queue.buffering.max.messages": 5})
    for number in range(50):
        producer.produce(names.full("test.producer"), b"%d" % number, partition=0)
    producer.flush()
    with PartitionReader(kafka) as reader:
        assert reader.bounds(names.full("test.producer"), 0) == (0, 50)
