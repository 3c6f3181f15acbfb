"""Topics on a broker: create them as the catalogue says, list them, check them.

The embedded broker cannot create topics; there they are touched, which makes them with 4 partitions.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import ConfigResource, NewTopic, ResourceType

from tamiyo.schemas.connection import Connection
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import MAX_MESSAGE_BYTES, KafkaSettings, TopicNames
from tamiyo.schemas.topics import CATALOGUE, Topic
from tamiyo.streams.admin.brokers import is_embedded

DAY_MS = 86_400_000
DEAD_RETENTION_MS = 30 * DAY_MS  # long enough for an operator to come back from holiday
MAX_BATCH_BYTES = MAX_MESSAGE_BYTES + 1024 * 1024
"""What a broker must accept at once: the largest message, and what librdkafka may put beside it into a batch."""
REQUEST_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class TopicState:
    """One topic as a broker has it; `partitions` is 0 where it does not exist."""

    name: str
    """On the broker, with the installation's prefix."""
    partitions: int
    expected_cleanup: str
    cleanup: str | None = None
    """As the broker has it; None where it does not tell."""
    retention_ms: int | None = None
    max_batch_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """One topic as it should be."""

    name: str
    cleanup: str
    retention_ms: int


def dead_letter_names(topic: Topic) -> tuple[str, str]:
    """Return where `topic`'s unusable and late messages go."""
    return topic.dead_letters, topic.late


def plan(topics: Iterable[Topic], names: TopicNames) -> list[TopicPlan]:
    """Return every topic that `topics` need: themselves, and where the rejects of those that a stage reads go."""
    wanted: list[TopicPlan] = []
    for topic in topics:
        wanted.append(TopicPlan(names.full(topic.name), topic.cleanup, topic.retention_ms))
        wanted.extend(TopicPlan(names.full(each), "delete", DEAD_RETENTION_MS) for each in dead_letter_names(topic))
    return wanted


class Topics:
    """The catalogue's topics on one broker.

    Every method raises BrokerError when the broker does not answer or refuses.
    """

    def __init__(self, kafka: KafkaSettings, names: TopicNames, topics: Sequence[Topic] = CATALOGUE) -> None:
        self._connection = Connection(kafka)
        self._admin = self._connection.admin
        self._bootstrap = kafka.bootstrap_servers
        self._plan = plan(topics, names)

    def reachable(self, timeout_s: float = 5.0) -> str | None:
        """Return why the broker does not answer, or None if it does.

        Raises BrokerRefused where it will never answer with these credentials or certificates.
        """
        trouble = self._connection.probe(timeout_s)
        if trouble is not None and trouble.final:
            raise trouble.error(self._bootstrap)
        return trouble.reason if trouble is not None else None

    def embedded(self) -> bool:
        """Return whether the broker is the embedded one."""
        return is_embedded(self._metadata().cluster_id)

    def missing(self) -> list[str]:
        """Return the topics that should exist and do not."""
        present = self._metadata().topics
        return [each.name for each in self._plan if each.name not in present]

    def create(self, *, partitions: int = 4, replication: int = 1, retention_ms: int | None = None) -> list[str]:
        """Create what is missing, all with `partitions`, since a run keeps its number across topics.

        `retention_ms` is for all of them instead of the catalogue's; -1 keeps records of any age.
        On the embedded broker topics are touched instead. Returns the names that were made.
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
        made: list[str] = []
        for name, future in self._admin.create_topics(wanted, request_timeout=REQUEST_TIMEOUT_S).items():
            try:
                future.result()
                made.append(name)
            except KafkaException as error:
                # Somebody else was faster: that is what was wanted.
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise BrokerError(f"topic {name} could not be created: {error.args[0].str()}") from error
        self._wait_until_visible({each.topic for each in wanted})
        return made

    def present(self) -> list[str]:
        """Return the planned topics that exist."""
        present = self._metadata().topics
        return [each.name for each in self._plan if each.name in present]

    def delete(self) -> list[str]:
        """Delete every planned topic that exists, with all it holds; return those."""
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
        """Name every missing topic to the broker, which makes it if it makes topics on demand; return those."""
        absent = self.missing()
        for name in absent:
            self._metadata(name)
        return absent

    def states(self) -> list[TopicState]:
        """Return every planned topic as the broker has it."""
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
        """Return what is wrong, a sentence each: missing topics, differing partition counts, cleanup, sizes."""
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
            # Without a name: all topics, and none is made.
            found = self._admin.list_topics(topic, timeout=10) if topic else self._admin.list_topics(timeout=10)
        except KafkaException as error:
            trouble = self._connection.probe(5.0)
            raise (
                trouble.error(self._bootstrap)
                if trouble is not None
                else BrokerError(f"{self._bootstrap} did not answer: {error.args[0].str()}")
            ) from error
        return _Metadata(found.cluster_id, found.topics)

    def _config(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        # The mock cluster does not know DescribeConfigs.
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
