"""Follows what operators announce about the policy: freezes, and rollbacks."""

from collections.abc import Callable

import structlog

from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint, policy_orders_key
from tamiyo.schemas.topics import CHECKPOINTS

log = structlog.get_logger(__name__)

POLL = 100  # messages a turn; there is one for each release


class OperatorOrders:
    """The orders for one policy, from the compacted topic of checkpoints."""

    def __init__(self, name: str, kafka: KafkaSettings, names: TopicNames) -> None:
        self._name = name
        self._topic = names.full(CHECKPOINTS.name)
        self._reader = PartitionReader(kafka, names.full("tamiyo_learner_orders"))
        self.frozen = False
        """Whether the learner must not learn or release."""
        self.rollback: PolicyCheckpoint | None = None
        """The last rollback announced since `start`, until the learner takes it."""

    def start(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Read the orders in force; later ones come with `poll`.

        Raises:
            BrokerError: the topic cannot be read.
        """
        ranges = self._reader.ranges(self._topic)
        for message in self._reader.read(ranges, stopped=stopped):
            self._take(message.key(), message.value())
        self.rollback = None  # how the learner resumes depends on it already
        self._reader.assign({(each.topic, each.partition): each.end for each in ranges})

    def poll(self) -> None:
        """Take what was announced since.

        Raises:
            BrokerError: the topic cannot be read any more.
        """
        for message in self._reader.poll(POLL, timeout_s=0.0):
            self._take(message.key(), message.value())

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()

    def _take(self, key: bytes | None, value: bytes | None) -> None:
        name = (key or b"").decode("utf-8", "replace")
        if value is None or name not in (self._name, policy_orders_key(self._name)):
            return
        try:
            announced = decode(value, PolicyCheckpoint)
        except SchemaError as error:
            log.error("announcement cannot be read", error=str(error))
            return
        if name != self._name:
            if announced.frozen != self.frozen:
                log.warning("frozen" if announced.frozen else "thawed", by=announced.issued_by, reason=announced.reason)
            self.frozen = announced.frozen
        elif announced.status == CheckpointStatus.ROLLED_BACK:
            self.rollback = announced
