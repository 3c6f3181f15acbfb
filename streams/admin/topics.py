"""Creates, lists and checks the catalogue's topics on a broker.

The embedded broker creates topics on demand, with 4 partitions; there they are touched.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import ConfigResource, NewPartitions, NewTopic, ResourceType

from tamiyo.schemas.client.connection import Connection
from tamiyo.schemas.errors import BrokerError, ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CATALOGUE, Topic
from tamiyo.streams.admin.brokers import is_embedded
from tamiyo.streams.admin.topic_findings import (
    REPLICATION,
    TopicFinding,
    TopicState,
    min_insync,
    needed_bytes,
    problems,
    risks,
)

DAY_MS = 86_400_000
DEAD_RETENTION_MS = 30 * DAY_MS  # longer than an operator's holiday
PARTITIONS = 4
"""Partitions of a new installation's topics, unless others are given."""
REQUEST_TIMEOUT_S = 20.0


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
        self._prefix = names.prefix
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

    def create(
        self, *, partitions: int | None = None, replication: int | None = None, retention_ms: int | None = None
    ) -> list[str]:
        """Create the missing topics; the embedded broker's are touched instead.

        Args:
            partitions: of every topic: a run has the same partition number on all of them. None: as many as the
                topics that exist, or `PARTITIONS`.
            replication: replicas of every partition; None: see `replication`.
            retention_ms: replaces the catalogue's for all topics; -1 keeps records without limit.

        Returns:
            The names of the created topics.

        Raises:
            ConfigurationError: topics exist with another number of partitions.
            BrokerError: the broker refused some, or another process created some with another number meanwhile.
        """
        if self.embedded():
            return self.touch()
        present = self._metadata().topics
        count = self._partitions(partitions, present)
        replicas = self.replication(replication)
        wanted = [
            NewTopic(
                each.name,
                num_partitions=count,
                replication_factor=replicas,
                config={
                    "cleanup.policy": each.cleanup,
                    "retention.ms": str(each.retention_ms if retention_ms is None else retention_ms),
                    "max.message.bytes": str(needed_bytes()),
                    "message.timestamp.type": "CreateTime",
                    "min.insync.replicas": str(min_insync(replicas)),
                },
            )
            for each in self._plan
            if each.name not in present
        ]
        if not wanted:
            return []
        created: list[str] = []
        failed: list[tuple[str, KafkaException]] = []
        for name, future in self._admin.create_topics(wanted, request_timeout=REQUEST_TIMEOUT_S).items():
            try:
                future.result()
                created.append(name)
            except KafkaException as error:
                # Created by another process meanwhile.
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    failed.append((name, error))
        if failed:
            (name, refusal), more = failed[0], f", and {len(failed) - 1} more" if len(failed) > 1 else ""
            raise BrokerError(
                f"topic {name}{more} could not be created: {refusal.args[0].str()}; {len(created)} others were created"
            ) from refusal
        self._wait_until_visible({each.topic for each in wanted})
        present = self._metadata().topics
        counts = {len(_of(present, each.name)) for each in self._plan if each.name in present}
        if len(counts) > 1:
            raise BrokerError(
                f"topics have {' or '.join(map(str, sorted(counts)))} partitions, and all need the same number: "
                "another process created some at the same time. "
                f"`tamiyo topics grow --partitions {max(counts)}` makes them equal"
            )
        return created

    def replication(self, wanted: int | None = None) -> int:
        """Return how many replicas new topics get: those `wanted`, else `REPLICATION`, but one a broker at most."""
        return wanted if wanted is not None else min(REPLICATION, self.brokers())

    def brokers(self) -> int:
        """Return how many brokers the cluster has now."""
        return self._metadata().brokers

    def grow(self, partitions: int) -> list[str]:
        """Add partitions to every planned topic that has fewer; return the names of those topics.

        `tamiyo.streams.admin.growth` is the whole operation: by itself this leaves keys where they are no longer looked
        for.
        """
        present = self._metadata().topics
        short = [each.name for each in self._plan if 0 < len(_of(present, each.name)) < partitions]
        requests = [NewPartitions(name, partitions) for name in short]
        futures = self._admin.create_partitions(requests, request_timeout=REQUEST_TIMEOUT_S) if requests else {}
        for name, future in futures.items():
            try:
                future.result()
            except KafkaException as error:
                # Grown by another process meanwhile.
                if error.args[0].code() != KafkaError.INVALID_PARTITIONS or self._count(name) < partitions:
                    raise BrokerError(f"topic {name} could not be grown: {error.args[0].str()}") from error
        self._wait(lambda: [name for name in short if self._count(name) < partitions], "partitions did not appear")
        return short

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
        found: list[TopicState] = []
        for each in self._plan:
            partitions, settings = _of(present, each.name), config.get(each.name, {})
            found.append(
                TopicState(
                    each.name,
                    len(partitions),
                    each.cleanup,
                    settings.get("cleanup.policy"),
                    _integer(settings.get("retention.ms")),
                    _integer(settings.get("max.message.bytes")),
                    min((len(partition.replicas) for partition in partitions), default=0),
                    _integer(settings.get("min.insync.replicas")),
                    settings.get("message.timestamp.type"),
                    each.retention_ms if each.cleanup == "delete" else None,
                    sum(len(partition.isrs) < len(partition.replicas) for partition in partitions),
                    min((_in_sync(partition) for partition in partitions), default=None),
                )
            )
        return found

    def check(self) -> list[str]:
        """Return the problems, a sentence each: missing topics, partition counts, cleanup, sizes, replicas in sync."""
        return [each.text for each in self.findings() if each.state == "problem"]

    def findings(self) -> list[TopicFinding]:
        """Return the problems, and what makes the loss of a broker a problem, each with what to do.

        Where no topic exists at all, that is the only finding.
        """
        states = self.states()
        if not any(each.partitions for each in states):
            return [TopicFinding("problem", "no topic of this installation exists", self._creation())]
        # The embedded broker has no configuration, and loses everything anyway.
        return [*problems(states), *(() if self.embedded() else risks(states, self.brokers()))]

    def _creation(self) -> str:
        """Return how to create the topics, and whether there are those of other installations."""
        bare = self._plan[0].name.removeprefix(self._prefix)
        others = sorted(name.removesuffix(bare) for name in self._metadata().topics if name.endswith(bare))
        advice = "`tamiyo topics create` creates them"
        if not others:
            return advice
        listed = ", ".join(repr(each) for each in others[:3]) + (", ..." if len(others) > 3 else "")
        return (
            f"{advice}; the cluster has topics with the prefix {listed}: is TAMIYO_TOPIC_PREFIX={self._prefix} right?"
        )

    def _partitions(self, wanted: int | None, present: dict[str, Any]) -> int:
        """Return how many partitions new topics get, so that all topics have the same number."""
        counts = {len(_of(present, each.name)) for each in self._plan} - {0}
        if not counts:
            return PARTITIONS if wanted is None else wanted
        if wanted is not None and counts != {wanted}:
            have = " or ".join(str(count) for count in sorted(counts))
            can = (
                f"`tamiyo topics grow --partitions {wanted}` gives all of them more"
                if wanted >= max(counts)
                else "Kafka cannot take partitions away"
            )
            raise ConfigurationError(
                f"expected {wanted} partitions, but topics exist with {have}, and all need the same number: without "
                f"--partitions, missing topics are created with {max(counts)}; {can}"
            )
        return max(counts)

    def _count(self, name: str) -> int:
        return len(_of(self._metadata().topics, name))

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
        return _Metadata(found.cluster_id, found.topics, len(found.brokers))

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
        self._wait(lambda: sorted(names - set(self._metadata().topics)), "created topics did not appear")

    def _wait(self, missing: Callable[[], list[str]], failure: str) -> None:
        # What was created takes a moment to reach every broker's metadata.
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        while left := missing():
            if time.monotonic() > deadline:
                raise BrokerError(f"{failure}: {', '.join(left)}")
            time.sleep(0.05)


@dataclass(frozen=True, slots=True)
class _Metadata:
    cluster_id: str | None
    topics: dict[str, Any]
    brokers: int


def _in_sync(partition: Any) -> int:
    return len(partition.isrs) if partition.leader >= 0 else 0


def _of(topics: dict[str, Any], name: str) -> list[Any]:
    """Return the partitions of a topic, none where it does not exist."""
    return list(topics[name].partitions.values()) if name in topics else []


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None else None
