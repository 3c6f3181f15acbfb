"""Where policies are released: the newest checkpoint to go on from, and the next one stored and announced."""

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
    """What a learner starts from."""

    policy: TamiyoPolicy | None = None
    """None: there is nothing to go on from."""
    header: CheckpointHeader | None = None
    state: Mapping[str, Any] | None = None
    """The optimiser's, None where it does not fit any more."""
    newest: int = -1
    """The highest version ever given out; -1 where there was none."""
    announced: bool = False
    """Whether the topic's newest announcement is of this checkpoint."""
    data: bytes = field(default=b"", repr=False)


class CheckpointReleases:
    """The checkpoints of one policy, in the store and on the topic.

    A file is stored before it is announced. So the store's newest may be ahead of the topic, never behind it; whoever
    starts announces it again. No file is written over: that keeps two learners (one was thought dead, and only slept)
    from releasing two policies under one number, or from learning an experience twice.
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
        """Return the newest checkpoint that can be gone on from, its actions those of `blueprints`.

        One that was rolled back, or whose file is broken, gives way to the one before it.
        Raises BrokerError where the topic cannot be read, ConfigurationError where the store is another policy's.
        """
        announced = self.announced()
        versions = self._store.versions()
        newest = max([*versions, announced.version if announced else -1])
        for version in reversed(versions):
            same = announced is not None and announced.version == version
            if announced is not None and same and announced.status == CheckpointStatus.ROLLED_BACK:
                log.warning("the newest policy was rolled back: going on from the one before", version=version)
                continue
            try:
                data = self._store.read(self._store.file_name(version))
                expected = announced.checksum if announced is not None and same else None
                policy, header, state = load(data, expected, blueprints=blueprints)
            except CheckpointCorrupt as error:
                log.error("a checkpoint is broken: going on from the one before", version=version, error=str(error))
                continue
            except PolicyError as error:
                log.warning("the checkpoint cannot be learned further", version=version, error=str(error))
                return ResumePoint(newest=newest)
            if header.name != self._name:
                raise ConfigurationError(
                    f"the checkpoint store holds policy {header.name!r}, this learner's is {self._name!r}: give each "
                    "policy a store of its own (TAMIYO_LEARNER_CHECKPOINT_URL)"
                )
            same = same and header.config.blueprints == blueprints
            return ResumePoint(policy, header, state, newest, same, data)
        return ResumePoint(newest=newest)

    def announced(self) -> PolicyCheckpoint | None:
        """Return the newest announcement of this policy. Raises BrokerError where the topic cannot be read."""
        found: PolicyCheckpoint | None = None
        with PartitionReader(self._kafka, "tamiyo-learner-releases") as reader:
            for message in reader.read(reader.ranges(self._topic)):
                if message.key() != self._name.encode():
                    continue
                try:
                    found = decode(message.value(), PolicyCheckpoint)
                except SchemaError as error:
                    log.error("an announcement cannot be read", offset=message.offset(), error=str(error))
        return found

    def release(self, header: CheckpointHeader, data: bytes) -> PolicyCheckpoint:
        """Store a checkpoint, then announce it; both are done when this returns.

        Raises OSError where the store fails, BrokerError where the announcement was not delivered, PolicyError where
        another learner has gone on from the same policy: what this one has learned since is not released.
        """
        try:
            self._store.write(header.version, data)
        except FileExistsError:
            raise self._rival(header.version) from None
        announcement = self.announce(header, data)
        versions = self._store.versions()
        if versions and versions[-1] > header.version:
            # This one slept between file and announcement. Whoever starts announces the newest again.
            raise self._rival(versions[-1])
        for version in versions[: -self._keep]:
            self._store.delete(version)
        return announcement

    def _rival(self, version: int) -> PolicyError:
        return PolicyError(
            f"policy {version} is in the store already: another learner of {self._name!r} works too, and only one may"
        )

    def announce(self, header: CheckpointHeader, data: bytes) -> PolicyCheckpoint:
        """Announce a stored checkpoint. Raises BrokerError where the announcement was not delivered."""
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
