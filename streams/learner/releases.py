"""Finds the newest checkpoint to resume from, and stores and announces new ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from tamiyo.models.checkpoint import CheckpointHeader, CheckpointStore, announcement, checksum, load, read_header
from tamiyo.models.policy import TamiyoPolicy
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.client.compacted import newest_records
from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.codec import encode
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
    rolled_back: tuple[int, ...] = ()
    """Versions that the newest announcement takes back, ascending."""


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
        self.fallback: tuple[int, str] | None = None
        """Version and checksum of what decides after a rollback, and outside the canary share meanwhile."""

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
        rolled_back = self._rolled_back(announced, versions)
        for version in reversed(versions):
            same = announced is not None and announced.version == version
            if version in rolled_back:
                log.warning("policy was rolled back, trying the one before", version=version)
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
                return ResumePoint(newest=newest, rolled_back=rolled_back)
            if header.name != self._name:
                raise ConfigurationError(
                    f"the checkpoint store holds policy {header.name!r}, this learner has {self._name!r}: give each "
                    "policy its own store (TAMIYO_LEARNER_CHECKPOINT_URL)"
                )
            same = same and header.config.blueprints == blueprints
            return ResumePoint(policy, header, state, newest, same, data, rolled_back)
        return ResumePoint(newest=newest, rolled_back=rolled_back)

    def _rolled_back(self, announced: PolicyCheckpoint | None, versions: Sequence[int]) -> tuple[int, ...]:
        """Return the versions that a rollback takes back: those after its fallback, and what was learned from them."""
        if announced is None or announced.status != CheckpointStatus.ROLLED_BACK:
            return ()
        fallback = announced.fallback_version
        first = announced.version if fallback is None else fallback + 1
        found = {*range(first, announced.version), announced.version}
        # A release may have overtaken the rollback.
        for version in (each for each in versions if each > announced.version):
            try:
                if read_header(self._store, version).parent_version in found:
                    found.add(version)
            except PolicyError:
                continue  # the caller finds out why
        return tuple(sorted(found))

    def read(
        self, version: int, blueprints: tuple[str, ...]
    ) -> tuple[TamiyoPolicy, CheckpointHeader, Mapping[str, Any] | None, str]:
        """Return a stored version: policy with these blueprints, header, the learner's state and the checksum.

        Raises:
            PolicyError: it is missing or corrupt.
            OSError: the store fails.
        """
        data = self._store.read(self._store.file_name(version))
        policy, header, state = load(data, blueprints=blueprints)
        return policy, header, state, checksum(data)

    def announced(self) -> PolicyCheckpoint | None:
        """Return the newest announcement of this policy, None where there is none.

        Raises BrokerError where the topic cannot be read.
        """

        def undecodable(offset: int | None, error: SchemaError) -> None:
            log.error("announcement cannot be read", offset=offset, error=str(error))

        with PartitionReader(self._kafka, "tamiyo-learner-releases") as reader:
            found = newest_records(reader, self._topic, PolicyCheckpoint, undecodable=undecodable)
        return found.get(self._name)

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
        announced = self.announce(header, data)
        versions = self._store.versions()
        if versions and versions[-1] > header.version:
            # Another learner resumed between file and announcement. The next start announces the newest again.
            raise self._conflict(versions[-1])
        for version in versions[: -self._keep]:
            self._store.delete(version)
        return announced

    def _conflict(self, version: int) -> PolicyError:
        return PolicyError(
            f"checkpoint {version} already exists: another learner is running for policy {self._name!r}; run exactly "
            "one"
        )

    def announce(self, header: CheckpointHeader, data: bytes) -> PolicyCheckpoint:
        """Announce a stored checkpoint; raises BrokerError where the announcement was not delivered."""
        announced = self.describe(header, data)
        try:
            self._publish(announced)
        except BrokerError as error:
            raise BrokerError(f"policy {header.version} was stored but not announced: {error}") from error
        log.info("policy released", version=header.version, experiences=header.experiences, bytes=len(data))
        return announced

    def describe(self, header: CheckpointHeader, data: bytes) -> PolicyCheckpoint:
        """Return the announcement of a stored checkpoint."""
        fallback = self.fallback if self.fallback is not None and self.fallback[0] < header.version else None
        plain = announcement(header, self._store.file_name(header.version), data)
        if fallback is None:
            return plain
        return plain.model_copy(update={"fallback_version": fallback[0], "fallback_checksum": fallback[1]})

    def roll_back(self, released: PolicyCheckpoint, fallback: tuple[int, str], reason: str) -> None:
        """Announce that a version must not act any more; raises BrokerError where it was not delivered.

        Args:
            released: the announcement of its release.
            fallback: version and checksum of the one that decides instead.
            reason: why, in words.
        """
        changes = {"fallback_version": fallback[0], "fallback_checksum": fallback[1], "reason": reason}
        self._publish(released.model_copy(update={"status": CheckpointStatus.ROLLED_BACK, **changes}))

    def _publish(self, announcement: PolicyCheckpoint) -> None:
        self._producer.produce(self._topic, encode(announcement), self._name)
        self._producer.flush()
