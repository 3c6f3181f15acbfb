"""The default transport: an attached run's records over Kafka."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from tamiyo.host._client.publisher import KafkaPublisher
from tamiyo.host._client.receiver import KafkaReceiver
from tamiyo.host._client.transport import InboundRecord, Make
from tamiyo.host._common.settings import HostSettings
from tamiyo.schemas.adaptation import CompiledKernel
from tamiyo.schemas.client.registry import Registry, RegistrySettings
from tamiyo.schemas.client.subjects import Subjects
from tamiyo.schemas.client.tracing import Traces, traces
from tamiyo.schemas.codec import use_registry
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import Topic

__all__ = ["KafkaTransport"]

log = logging.getLogger(__name__)


class KafkaTransport:
    """Publishes and receives through Kafka; background threads do the work, so training never waits for a broker.

    If no broker is reachable within `HostSettings.connect_timeout_s`, training continues alone: records queue up and
    are dropped when the queue is full, and the connection is retried in the background.
    """

    store_url: str | None = None

    def __init__(
        self,
        kafka: KafkaSettings | None = None,
        topics: TopicNames | None = None,
        registry: RegistrySettings | None = None,
    ) -> None:
        """Configure the connection; nothing is opened yet.

        Args:
            kafka: Brokers, credentials and client options. Default: from the environment (`TAMIYO_KAFKA_*`).
            topics: Topic prefix. Default: from the environment (`TAMIYO_TOPIC_PREFIX`).
            registry: Schema registry; if it has a URL, it is used by the whole process. Default: from the environment.
        """
        self._kafka = kafka or KafkaSettings()
        self._topics = topics or TopicNames()
        self._registry = registry or RegistrySettings()
        self._publisher: KafkaPublisher | None = None
        self._receiver: KafkaReceiver | None = None

    @property
    def destination(self) -> str:
        """The bootstrap servers; while none has answered, also how to name others."""
        servers = f"Kafka at {self._kafka.bootstrap_servers}"
        return servers if self.connected else f"{servers} (set TAMIYO_KAFKA_BOOTSTRAP_SERVERS to your brokers)"

    @property
    def connected(self) -> bool:
        """Whether the broker was reached at least once."""
        return self._receiver is not None and self._receiver.connected

    @property
    def awaits_decisions(self) -> bool:
        """A run's last window is decided after the run has ended, so wait if there is a broker."""
        return self.connected

    @property
    def published(self) -> int:
        """Number of records that Kafka has acknowledged."""
        return self._publisher.published if self._publisher is not None else 0

    @property
    def dropped(self) -> int:
        """Number of records lost."""
        return self._publisher.dropped if self._publisher is not None else 0

    @property
    def busy_seconds(self) -> float:
        """Processor time of the publisher's thread, seconds."""
        return self._publisher.busy_seconds if self._publisher is not None else 0.0

    def open(self, run_id: str, settings: HostSettings, on_kernel: Callable[[CompiledKernel], None]) -> None:
        """Connect, waiting at most `settings.connect_timeout_s` for a broker.

        Args:
            run_id: Key of every record.
            settings: Queue capacity and timeouts.
            on_kernel: Called with each kernel record before `receive` returns it, in the receiver's thread.

        Raises:
            ConfigurationError: The transport is open already.
        """
        if self._receiver is not None:
            raise ConfigurationError("this transport carries a run already: make a KafkaTransport for each run")
        if self._registry.url is not None:
            use_registry(Subjects(Registry(self._registry), self._topics))  # used by the background threads only
        spans: Traces | None = None
        try:
            spans = traces()
        except ConfigurationError as error:
            log.warning("this run has no traces, and training continues: %s", error)
        # The receiver first: it notes where the topics end before the topology can cause any decision.
        self._receiver = KafkaReceiver(
            run_id,
            self._kafka,
            self._topics,
            connect_timeout_s=settings.connect_timeout_s,
            on_kernel=on_kernel,
            traces=spans,
        )
        self._publisher = KafkaPublisher(
            run_id, self._kafka, self._topics, capacity=settings.queue_capacity, traces=spans
        )

    def publish(self, topic: Topic, make: Make) -> None:
        """Queue a record; the publisher's thread makes, encodes and sends it.

        Args:
            topic: Where to publish it.
            make: Makes the record.
        """
        if self._publisher is not None:
            self._publisher.publish(topic, make)

    def receive(self) -> Sequence[InboundRecord]:
        """Return what arrived since the last call."""
        return self._receiver.receive() if self._receiver is not None else ()

    def close(self, timeout_s: float) -> None:
        """Stop receiving, then deliver what is queued.

        Args:
            timeout_s: Seconds that the deliveries may take.
        """
        if self._receiver is not None:
            self._receiver.close()
        if self._publisher is not None:
            self._publisher.close(timeout_s)
