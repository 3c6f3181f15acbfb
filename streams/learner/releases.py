"""Where policies are released: the newest checkpoint to go on from, and the next one stored and announced."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition

from tamiyo.models.checkpoint import CheckpointHeader, CheckpointStore, checksum, load
from tamiyo.models.policy import TamiyoPolicy
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.errors import BrokerError, CheckpointCorrupt, ConfigurationError, PolicyError, SchemaError
from tamiyo.schemas.kafka import PRODUCER, KafkaSettings, TopicNames
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint
from tamiyo.schemas.topics import CHECKPOINTS

log = structlog.get_logger(__name__)

READ_TIMEOUT_S = 30.0
POLL_S = 0.2


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
        self._timeout = delivery_timeout_s
        self._producer = Producer(
            kafka.librdkafka(**PRODUCER, **{"message.timeout.ms": int(delivery_timeout_s * 1000)})
        )

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
        consumer = Consumer(
            self._kafka.librdkafka(log_level=0, **{"group.id": "tamiyo-learner-releases", "enable.auto.commit": False})
        )
        try:
            metadata = consumer.list_topics(self._topic, timeout=READ_TIMEOUT_S).topics[self._topic]
            left = {}
            for number in metadata.partitions:
                low, high = consumer.get_watermark_offsets(TopicPartition(self._topic, number), timeout=READ_TIMEOUT_S)
                if high > low:
                    left[number] = high
            consumer.assign([TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in left])
            return self._newest(consumer, left)
        except KafkaException as error:
            raise BrokerError(f"{self._topic} cannot be read: {error}") from error
        finally:
            consumer.close()

    def _newest(self, consumer: Consumer, left: dict[int, int]) -> PolicyCheckpoint | None:
        found: PolicyCheckpoint | None = None
        deadline = time.monotonic() + READ_TIMEOUT_S
        while left:
            if time.monotonic() > deadline:
                raise BrokerError(f"{self._topic} was not read within {READ_TIMEOUT_S:.0f} s")
            message = consumer.poll(POLL_S)
            if message is not None and not message.error() and message.key() == self._name.encode():
                try:
                    found = decode(message.value(), PolicyCheckpoint)
                except SchemaError as error:
                    log.error("an announcement cannot be read", offset=message.offset(), error=str(error))
            # The position passes what compaction and transactions left out, where no message ends a partition.
            for place in consumer.position([TopicPartition(self._topic, number) for number in left]):
                if place.offset >= left[place.partition]:
                    del left[place.partition]
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
        failures: list[str] = []
        self._producer.produce(
            self._topic,
            encode(announcement),
            self._name.encode(),
            on_delivery=lambda error, _: failures.append(error.str()) if error is not None else None,
        )
        undelivered = self._producer.flush(self._timeout + 1)
        if failures or undelivered:
            raise BrokerError(
                f"policy {header.version} was stored but not announced on {self._topic}: "
                f"{failures[0] if failures else f'no answer within {self._timeout:.0f} s'}"
            )
        log.info("policy released", version=header.version, experiences=header.experiences, bytes=len(data))
        return announcement
