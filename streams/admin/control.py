"""Publishes an operator's standing orders on the control topic."""

from tamiyo.schemas.adaptation import ControlCommand
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.codec import encode
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CONTROL

DELIVERY_TIMEOUT_S = 10.0


def give(order: ControlCommand, kafka: KafkaSettings, names: TopicNames) -> None:
    """Publish an order and wait for its delivery; raises BrokerError where it is not delivered."""
    producer = AwaitedProducer(kafka, timeout_s=DELIVERY_TIMEOUT_S)
    producer.produce(names.full(CONTROL.name), encode(order), order.run_id)
    producer.flush()
