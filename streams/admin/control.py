"""Standing orders of an operator, given on the control topic."""

from confluent_kafka import KafkaError, Message, Producer

from tamiyo.schemas.adaptation import ControlCommand
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import PRODUCER, KafkaSettings, TopicNames
from tamiyo.schemas.topics import CONTROL
from tamiyo.streams.admin.broker_wait import wait_for_broker

DELIVERY_TIMEOUT_S = 10.0


def give(order: ControlCommand, kafka: KafkaSettings, names: TopicNames) -> None:
    """Publish `order` and await its delivery; raises BrokerError if the broker does not take it."""
    failures: list[str] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error.str())

    timeout_ms = int(DELIVERY_TIMEOUT_S * 1_000)
    wait_for_broker(kafka)
    producer = Producer(kafka.librdkafka(**PRODUCER, log_level=0, **{"message.timeout.ms": timeout_ms}))
    producer.produce(names.full(CONTROL.name), encode(order), order.run_id, on_delivery=delivered)
    left = producer.flush(DELIVERY_TIMEOUT_S)
    if failures or left:
        reason = failures[0] if failures else "no answer"
        raise BrokerError(f"{kafka.bootstrap_servers} did not take the order: {reason}")
