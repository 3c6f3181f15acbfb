"""Finds the newest checkpoint to resume from, and stores and announces new ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from tamiyo.models.checkpoint import CheckpointHeader, CheckpointStore, checksum, load
from tamiyo.models.policy import TamiyoPolicy
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.errors import BrokerError, CheckpointCorrupt, ConfigurationError, PolicyError, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint
from tamiyo.schemas.topics import CHECKPOINTS

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """The checkpoint that a learner resumes from."""

    policy: TamiyoPolicy | None = None
    """None: there is no usable checkpoint."""
    header: CheckpointHeader | None = None
    state: Mapping[str, Any] | None = None
    """State of the optimiser; None where it does not fit the policy."""
    newest: int = -1
    """The highest version ever used; -1 where there was none."""
    announced: bool = False
    """Whether the topic's newest announcement is for this checkpoint."""
    data: bytes = field(default=b"", repr=False)


class CheckpointReleases:
    """The checkpoints of one policy, in the store and on the topic.

    A file is stored before it is announced, so the store's newest version may be ahead of the topic, never behind it; a
    learner announces it again when it starts. No file is replaced. If two learners run at once (for example a
    presumed-dead one resumes), the store accepts each version once, so no number means two policies and no experience
    is learned twice.
    """

    def __init__(
        self,
        name: str,
        store: CheckpointStore,
        kafka: KafkaSettings,
        names: TopicNames,
        *,
        keep: int = 2_000,
        delivery_timeout_s: float = 30.0,
    ) -> None:
        self._name = name
        self._store = store
        self._kafka = kafka
        self._topic = names.full(CHECKPOINTS.name)
        self._keep = keep
        self._producer = AwaitedProducer(kafka, timeout_s=delivery_timeout_s)

    def find(self, blueprints: tuple[str, ...]) -> ResumePoint:
        """Return the newest usable checkpoint; one that was rolled back or is corrupt is skipped.

        Args:
            blueprints: actions that the policy shall have.

        Raises:
            BrokerError: the topic cannot be read.
            ConfigurationError: the store holds another policy.
        """
        announced = self.announced()
        versions = self._store.versions()
        newest = max([*versions, announced.version if announced else -1])
        for version in reversed(versions):
            same = announced is not None and announced.version == version
            if announced is not None and same and announced.status == CheckpointStatus.ROLLED_BACK:
                log.warning("newest policy was rolled back, trying the previous one", version=version)
                continue
            try:
                data = self._store.read(self._store.file_name(version))
                expected = announced.checksum if announced is not None and same else None
                policy, header, state = load(data, expected, blueprints=blueprints)
            except CheckpointCorrupt as error:
                log.error("checkpoint is corrupt, trying the previous one", version=version, error=str(error))
                continue
            except PolicyError as error:
                log.warning("checkpoint cannot be used, starting anew", version=version, error=str(error))
                return ResumePoint(newest=newest)
            if header.name != self._name:
                raise ConfigurationError(
                    f"the checkpoint store holds policy {header.name!r}, this learner has {self._name!r}: give each "
                    "policy its own store (TAMIYO_LEARNER_CHECKPOINT_URL)"
                )
            same = same and header.config.blueprints == blueprints
            return ResumePoint(policy, header, state, newest, same, data)
        return ResumePoint(newest=newest)

    def announced(self) -> PolicyCheckpoint | None:
        """Return the newest announcement of this policy, None where there is none.

        Raises BrokerError where the topic cannot be read.
        """
        found: PolicyCheckpoint | None = None
        with PartitionReader(self._kafka, "tamiyo-learner-releases") as reader:
            for message in reader.read(reader.ranges(self._topic)):
                if message.key() != self._name.encode():
                    continue
                try:
                    found = decode(message.value(), PolicyCheckpoint)
                except SchemaError as error:
                    log.error("announcement cannot be read", offset=message.offset(), error=str(error))
        return found

    def release(self, header: CheckpointHeader, data: bytes) -> PolicyCheckpoint:
        """Store a checkpoint, then announce it and wait for the delivery.

        Raises:
            OSError: the store fails.
            BrokerError: the announcement was not delivered.
            PolicyError: another learner has released this version; this one's is not released.
        """
        try:
            self._store.write(header.version, data)
        except FileExistsError:
            raise self._conflict(header.version) from None
        announcement = self.announce(header, data)
        versions = self._store.versions()
        if versions and versions[-1] > header.version:
            # Another learner resumed between file and announcement. The next start announces the newest again.
            raise self._conflict(versions[-1])
        for version in versions[: -self._keep]:
            self._store.delete(version)
        return announcement

    def _conflict(self, version: int) -> PolicyError:
        return PolicyError(
            f"checkpoint {version} already exists: another learner is running for policy {self._name!r}; run exactly "
            "one"
        )

    def announce(self, header: CheckpointHeader, data: bytes) -> PolicyCheckpoint:
        """Announce a stored checkpoint; raises BrokerError where the announcement was not delivered."""
        announcement = PolicyCheckpoint(
            name=header.name,
            version=header.version,
            parent_version=header.parent_version,
            time_ms=header.time_ms,
            status=CheckpointStatus.RELEASED,
            file=self._store.file_name(header.version),
            checksum=checksum(data),
            size_bytes=len(data),
            feature_version=header.feature_version,
            blueprints=list(header.config.blueprints),
            offsets=header.offsets,
            experiences=header.experiences,
            updates=header.updates,
            metrics=header.metrics,
        )
        try:
            self._producer.produce(self._topic, encode(announcement), self._name)
            self._producer.flush()
        except BrokerError as error:
            raise BrokerError(f"policy {header.version} was stored but not announced: {error}") from error
        log.info("policy released", version=header.version, experiences=header.experiences, bytes=len(data))
        return announcement
