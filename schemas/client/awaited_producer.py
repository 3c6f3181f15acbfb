"""Publishes messages and waits for their delivery."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import HEADERS_BYTES, MAX_MESSAGE_BYTES, PRODUCER, KafkaSettings

POLL_S = 0.1
GRACE_S = 1.0  # librdkafka reports a delivery that took too long a moment later


class AwaitedProducer:
    """A producer whose `flush` returns once every message is delivered.

    A delivery that failed is raised as a BrokerError by the next call of any method.
    """

    def __init__(
        self, kafka: KafkaSettings, *, timeout_s: float = 30.0, options: Mapping[str, Any] | None = None
    ) -> None:
        """Make the producer.

        Args:
            kafka: how to reach the broker.
            timeout_s: seconds within which a message must be delivered.
            options: further settings of librdkafka.
        """
        self._servers = kafka.bootstrap_servers
        self._timeout_s = timeout_s
        self._failed: list[str] = []
        settings = {
            **PRODUCER,
            # Dead letters are sent back, and recordings replayed, with headers added.
            "message.max.bytes": MAX_MESSAGE_BYTES + HEADERS_BYTES,
            "delivery.timeout.ms": round(1000 * timeout_s),
            "log_level": 0,
            **(options or {}),
        }
        self._producer = Producer(kafka.librdkafka(**settings))

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | str | None = None,
        *,
        partition: int = -1,
        headers: Iterable[tuple[str, bytes | None]] = (),
        timestamp_ms: int = 0,
        on_delivery: Callable[[Message], Any] | None = None,
    ) -> None:
        """Queue a message; waits while the queue is full.

        Args:
            topic: its name on the broker.
            value: None for a tombstone or a marker.
            key: which partition it goes to, unless `partition` is given.
            partition: -1 to choose by key.
            headers: name and value of each.
            timestamp_ms: 0 for now.
            on_delivery: called with the message once it is delivered, from a later call.
        """

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._failed.append(f"{message.topic()}: {error.str()}")
            elif on_delivery is not None:
                on_delivery(message)

        while True:
            try:
                self._producer.produce(
                    topic,
                    value,
                    key,
                    partition,
                    headers=list(headers),
                    timestamp=timestamp_ms,
                    on_delivery=delivered,
                )
                break
            except BufferError:
                self._producer.poll(POLL_S)
            except KafkaException as error:
                raise BrokerError(f"cannot publish to {topic}: {error.args[0].str()}") from error
        self.poll()

    def poll(self) -> None:
        """Raise BrokerError if a delivery has failed since the last call."""
        self._producer.poll(0)
        if self._failed:
            failed, self._failed = self._failed, []
            raise BrokerError(f"{self._servers} did not accept {len(failed)} messages; the first for {failed[0]}")

    def flush(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Return once everything is delivered; calls `meanwhile` while it waits, which may raise to end that.

        Raises:
            BrokerError: a delivery failed or took too long.
        """
        deadline = time.monotonic() + self._timeout_s + GRACE_S
        while left := self._producer.flush(POLL_S):
            meanwhile()
            if time.monotonic() > deadline:
                raise BrokerError(f"{left} messages were not delivered to {self._servers} in {self._timeout_s:.0f} s")
        self.poll()
