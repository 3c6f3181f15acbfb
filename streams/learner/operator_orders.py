"""Follows what operators announce about the policy: freezes, and rollbacks."""

from collections.abc import Callable

import structlog
from confluent_kafka import Message

from tamiyo.schemas.client.compacted import NewestByKey, copy_of, key_text
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
        self._partitions: set[int] = set()
        self._newest: NewestByKey[str, PolicyCheckpoint] = NewestByKey()
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
            self._take(message)
        self.rollback = None  # how the learner resumes depends on it already
        self._reader.assign({(each.topic, each.partition): each.end for each in ranges})
        self._partitions = {each.partition for each in ranges}

    def poll(self) -> None:
        """Take what was announced since.

        Raises:
            BrokerError: the topic cannot be read any more.
        """
        for message in self._reader.poll(POLL, timeout_s=0.0):
            self._take(message)

    def refresh(self) -> None:
        """Read partitions that were added to the topic, from their beginnings.

        Raises:
            BrokerError: the broker does not respond.
        """
        added = set(self._reader.partitions(self._topic)) - self._partitions
        if added:
            self._reader.add({(self._topic, number): self._reader.bounds(self._topic, number)[0] for number in added})
            self._partitions |= added

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()

    def _take(self, message: Message) -> None:
        name = key_text(message.key())
        if name not in (self._name, policy_orders_key(self._name)):
            return
        try:
            announced = decode(message.value(), PolicyCheckpoint) if message.value() is not None else None
        except SchemaError as error:
            log.error("announcement cannot be read", error=str(error))
            return
        if not self._newest.take(name, copy_of(message, announced)):
            return
        newest = self._newest.get(name)
        if name != self._name:
            frozen = newest is not None and newest.frozen
            if frozen != self.frozen:
                by, reason = (
                    (newest.issued_by, newest.reason) if newest is not None else ("", "the orders were removed")
                )
                log.warning("frozen" if frozen else "thawed", by=by, reason=reason)
            self.frozen = frozen
        elif newest is not None and newest.status == CheckpointStatus.ROLLED_BACK:
            self.rollback = newest
