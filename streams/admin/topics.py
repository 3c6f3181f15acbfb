"""Creates, lists and checks the catalogue's topics on a broker.

The embedded broker creates topics on demand, with 4 partitions; there they are touched.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import ConfigResource, NewTopic, ResourceType

from tamiyo.schemas.client.connection import Connection
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import MAX_MESSAGE_BYTES, KafkaSettings, TopicNames
from tamiyo.schemas.topics import CATALOGUE, Topic
from tamiyo.streams.admin.brokers import is_embedded

DAY_MS = 86_400_000
DEAD_RETENTION_MS = 30 * DAY_MS  # longer than an operator's holiday
MAX_BATCH_BYTES = MAX_MESSAGE_BYTES + 1024 * 1024
"""Largest batch that a topic must accept: the largest message and what librdkafka may add to its batch."""
REQUEST_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class TopicState:
    """The configuration of a topic on a broker; `partitions` is 0 where it does not exist."""

    name: str
    """With the installation's prefix."""
    partitions: int
    expected_cleanup: str
    cleanup: str | None = None
    """The actual policy; None where the broker does not report it."""
    retention_ms: int | None = None
    max_batch_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """The required configuration of a topic."""

    name: str
    cleanup: str
    retention_ms: int


def dead_letter_names(topic: Topic) -> tuple[str, str]:
    """Return the topics for rejected and for late messages of `topic`."""
    return topic.dead_letters, topic.late


def plan(topics: Iterable[Topic], names: TopicNames) -> list[TopicPlan]:
    """Return `topics`, and the topics for their rejected and late messages."""
    wanted: list[TopicPlan] = []
    for topic in topics:
        wanted.append(TopicPlan(names.full(topic.name), topic.cleanup, topic.retention_ms))
        wanted.extend(TopicPlan(names.full(each), "delete", DEAD_RETENTION_MS) for each in dead_letter_names(topic))
    return wanted


class Topics:
    """The catalogue's topics on one broker.

    Every method raises BrokerError where the broker does not respond or refuses.
    """

    def __init__(self, kafka: KafkaSettings, names: TopicNames, topics: Sequence[Topic] = CATALOGUE) -> None:
        self._connection = Connection(kafka)
        self._admin = self._connection.admin
        self._bootstrap = kafka.bootstrap_servers
        self._plan = plan(topics, names)

    def reachable(self, timeout_s: float = 5.0) -> str | None:
        """Return why there is no connection, or None if there is one.

        Raises BrokerRefused where credentials, certificates or permissions are wrong.
        """
        failure = self._connection.probe(timeout_s)
        if failure is not None and failure.final:
            raise failure.error(self._bootstrap)
        return failure.reason if failure is not None else None

    def embedded(self) -> bool:
        """Return whether the broker is the embedded one."""
        return is_embedded(self._metadata().cluster_id)

    def cluster_id(self) -> str | None:
        """Return the id of the broker's cluster, None where it has none."""
        found: str | None = self._metadata().cluster_id
        return found

    def missing(self) -> list[str]:
        """Return the planned topics that do not exist."""
        present = self._metadata().topics
        return [each.name for each in self._plan if each.name not in present]

    def create(self, *, partitions: int = 4, replication: int = 1, retention_ms: int | None = None) -> list[str]:
        """Create the missing topics; the embedded broker's are touched instead.

        Args:
            partitions: of every topic: a run has the same partition number on all of them.
            replication: replicas of every partition.
            retention_ms: replaces the catalogue's for all topics; -1 keeps records without limit.

        Returns:
            The names of the created topics.
        """
        if self.embedded():
            return self.touch()
        present = self._metadata().topics
        wanted = [
            NewTopic(
                each.name,
                num_partitions=partitions,
                replication_factor=replication,
                config={
                    "cleanup.policy": each.cleanup,
                    "retention.ms": str(each.retention_ms if retention_ms is None else retention_ms),
                    "max.message.bytes": str(MAX_BATCH_BYTES),
                },
            )
            for each in self._plan
            if each.name not in present
        ]
        if not wanted:
            return []
        created: list[str] = []
        for name, future in self._admin.create_topics(wanted, request_timeout=REQUEST_TIMEOUT_S).items():
            try:
                future.result()
                created.append(name)
            except KafkaException as error:
                # Created by another process meanwhile.
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise BrokerError(f"topic {name} could not be created: {error.args[0].str()}") from error
        self._wait_until_visible({each.topic for each in wanted})
        return created

    def present(self) -> list[str]:
        """Return the planned topics that exist."""
        present = self._metadata().topics
        return [each.name for each in self._plan if each.name in present]

    def delete(self) -> list[str]:
        """Delete every planned topic that exists, with its records; return their names."""
        names = self.present()
        for name, future in (
            self._admin.delete_topics(names, request_timeout=REQUEST_TIMEOUT_S) if names else {}
        ).items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise BrokerError(f"topic {name} could not be deleted: {error.args[0].str()}") from error
        return names

    def touch(self) -> list[str]:
        """Request every missing topic by name, which creates it on the embedded broker; return the names."""
        absent = self.missing()
        for name in absent:
            self._metadata(name)
        return absent

    def states(self) -> list[TopicState]:
        """Return the actual configuration of every planned topic."""
        present = self._metadata().topics
        config = self._config([each.name for each in self._plan if each.name in present])
        return [
            TopicState(
                each.name,
                len(present[each.name].partitions) if each.name in present else 0,
                each.cleanup,
                config.get(each.name, {}).get("cleanup.policy"),
                _integer(config.get(each.name, {}).get("retention.ms")),
                _integer(config.get(each.name, {}).get("max.message.bytes")),
            )
            for each in self._plan
        ]

    def check(self) -> list[str]:
        """Return the problems, a sentence each: missing topics, differing partition counts, cleanup, sizes."""
        states = self.states()
        problems = [f"topic {each.name} does not exist" for each in states if not each.partitions]
        counts: dict[int, list[str]] = {}
        for each in states:
            if each.partitions:
                counts.setdefault(each.partitions, []).append(each.name)
        if len(counts) > 1:
            usual = max(counts, key=lambda count: len(counts[count]))
            problems += [
                f"topic {name} has {count} partitions where the others have {usual}: "
                "a run's records would not stay on one partition number"
                for count, listed in sorted(counts.items())
                if count != usual
                for name in listed
            ]
        problems += [
            f"topic {each.name} has cleanup.policy={each.cleanup}, but {each.expected_cleanup} is expected"
            for each in states
            if each.cleanup is not None and each.expected_cleanup not in each.cleanup
        ]
        problems += [
            f"topic {each.name} has max.message.bytes={each.max_batch_bytes}, but {MAX_BATCH_BYTES} is needed for the "
            "largest messages"
            for each in states
            if each.max_batch_bytes is not None and each.max_batch_bytes < MAX_BATCH_BYTES
        ]
        return problems

    def _metadata(self, topic: str | None = None) -> "_Metadata":
        try:
            # Without a name: all topics, and none is created.
            found = self._admin.list_topics(topic, timeout=10) if topic else self._admin.list_topics(timeout=10)
        except KafkaException as error:
            failure = self._connection.probe(5.0)
            raise (
                failure.error(self._bootstrap)
                if failure is not None
                else BrokerError(f"no response from {self._bootstrap}: {error.args[0].str()}")
            ) from error
        return _Metadata(found.cluster_id, found.topics)

    def _config(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        # The mock cluster does not support DescribeConfigs.
        if not names or self.embedded():
            return {}
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        futures = self._admin.describe_configs(resources, request_timeout=REQUEST_TIMEOUT_S)
        found: dict[str, dict[str, str]] = {}
        for resource, future in futures.items():
            try:
                found[resource.name] = {key: entry.value for key, entry in future.result().items()}
            except KafkaException as error:
                raise BrokerError(f"topic {resource.name} cannot be described: {error.args[0].str()}") from error
        return found

    def _wait_until_visible(self, names: set[str]) -> None:
        # A created topic takes a moment to reach every broker's metadata.
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        while names - set(self._metadata().topics):
            if time.monotonic() > deadline:
                raise BrokerError(f"created topics did not appear: {', '.join(sorted(names))}")
            time.sleep(0.05)


@dataclass(frozen=True, slots=True)
class _Metadata:
    cluster_id: str | None
    topics: dict[str, Any]


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None else None
