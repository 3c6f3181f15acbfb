"""Creates, lists and checks the catalogue's topics on a broker.

The embedded broker creates topics on demand, with 4 partitions; there they are touched.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import ConfigResource, NewPartitions, NewTopic, ResourceType

from tamiyo.schemas.client.connection import Connection
from tamiyo.schemas.errors import BrokerError, ConfigurationError
from tamiyo.schemas.kafka import BATCH_BYTES, KafkaSettings, TopicNames
from tamiyo.schemas.topics import CATALOGUE, Topic
from tamiyo.streams.admin.brokers import is_embedded
from tamiyo.streams.settings import WorkerSettings

DAY_MS = 86_400_000
DEAD_RETENTION_MS = 30 * DAY_MS  # longer than an operator's holiday
PARTITIONS = 4
"""Partitions of a new installation's topics, unless others are given."""
REPLICATION = 3
"""Replicas of a partition: with one broker away, every record still has two."""
REQUEST_TIMEOUT_S = 20.0
AWAY = (
    "start the brokers that are away; `kafka-topics.sh --describe --under-replicated-partitions` lists the partitions"
)


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
    replication: int = 0
    """Replicas of the partition that has the fewest."""
    min_insync: int | None = None
    """Replicas that must have a record before its delivery is confirmed."""
    timestamps: str | None = None
    """Whose clock stamps a record: CreateTime, the producer's, or LogAppendTime, the broker's."""
    expected_retention_ms: int | None = None
    """The catalogue's; None for a compacted topic."""
    out_of_sync: int = 0
    """Partitions with a replica that is away or behind."""
    in_sync: int | None = None
    """Replicas in sync of the partition that has the fewest; 0 where a partition has no leader. None: unknown."""


@dataclass(frozen=True, slots=True)
class TopicFinding:
    """One way in which the topics differ from what an installation needs."""

    state: Literal["problem", "warning"]
    """A problem stops stages, or makes their results wrong; with a warning they work until a broker is lost."""
    text: str
    advice: str
    """What to do."""


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """The required configuration of a topic."""

    name: str
    cleanup: str
    retention_ms: int


def needed_bytes() -> int:
    """Return the max.message.bytes that topics need, for messages as large as a worker's settings allow."""
    return WorkerSettings().max_message_bytes + BATCH_BYTES


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
        return [*_problems(states), *(() if self.embedded() else _risks(states, self.brokers()))]

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


def min_insync(replication: int) -> int:
    """Return how many replicas must have a record before its delivery is confirmed.

    Two, where one broker may be away nevertheless: then a record that is confirmed survives the loss of a broker.
    """
    return 2 if replication >= REPLICATION else 1


def _problems(states: Sequence[TopicState]) -> list[TopicFinding]:
    """Return what stops stages or makes their results wrong; the topics that share it in one finding."""
    missing = [each.name for each in states if not each.partitions]
    found = []
    if missing:
        does = "does not exist" if len(missing) == 1 else "do not exist"
        creates = f"`tamiyo topics create` creates {'it' if len(missing) == 1 else 'them'}"
        found.append(TopicFinding("problem", f"{_named(missing)} {does}", creates))
    counts: dict[int, list[str]] = defaultdict(list)
    for each in states:
        if each.partitions:
            counts[each.partitions].append(each.name)
    usual = max(counts, key=lambda count: len(counts[count]), default=0)
    for count, names in sorted(counts.items()):
        if count != usual:
            text = f"{count} partitions where the others have {usual}: a run's records would not stay on one number"
            advice = f"`tamiyo topics grow --partitions {max(counts)}` makes them equal"
            found.append(TopicFinding("problem", f"{_listed(names)} {text}", advice))
    shared: dict[tuple[str, str], list[str]] = defaultdict(list)
    for each in states:
        for problem in _misconfigured(each) if each.partitions else ():
            shared[problem].append(each.name)
    return found + [
        TopicFinding("problem", f"{_listed(names)} {text}", _alter(names, advice) if "=" in advice else advice)
        for (text, advice), names in shared.items()
    ]


def _misconfigured(topic: TopicState) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with an existing topic, and the setting or the words that correct it."""
    if topic.cleanup is not None and topic.expected_cleanup not in topic.cleanup:
        text = f"cleanup.policy={topic.cleanup}, but {topic.expected_cleanup} is expected"
        yield text, f"cleanup.policy={topic.expected_cleanup}"
    needed = needed_bytes()
    if topic.max_batch_bytes is not None and topic.max_batch_bytes < needed:
        text = f"max.message.bytes={topic.max_batch_bytes}, but {needed} is needed for the largest messages"
        yield text, f"max.message.bytes={needed}"
    if topic.min_insync is not None and topic.min_insync > topic.replication:
        text = f"min.insync.replicas={topic.min_insync} and replication {topic.replication}: nobody can publish"
        yield text, f"min.insync.replicas={min_insync(topic.replication)}"
    elif topic.in_sync is not None and topic.in_sync < (least := topic.min_insync or 1):
        text = f"partitions with {topic.in_sync} replicas in sync where {least} must be: nobody can publish to them"
        yield text, AWAY


def _risks(states: Sequence[TopicState], brokers: int) -> list[TopicFinding]:
    """Return what costs records or stops the flow once a broker is lost; the topics that share it in one finding."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    alter = "`kafka-configs.sh --alter --add-config min.insync.replicas={}` changes it"
    for each in states:
        if not each.partitions:
            continue
        if each.replication == 1 and brokers > 1:
            text = f"replication 1 on a cluster of {brokers} brokers: with one of them their records are lost"
            found[text, "`kafka-reassign-partitions.sh` adds replicas; new topics get them by themselves"].append(
                each.name
            )
        elif each.min_insync is not None and each.replication == each.min_insync > 1:
            text = (
                f"min.insync.replicas={each.min_insync} and as many replicas: while one broker is away, nobody can "
                "publish"
            )
            found[text, alter.format(min_insync(each.replication))].append(each.name)
        elif each.min_insync is not None and each.min_insync < min_insync(each.replication):
            text = (
                f"replication {each.replication} and min.insync.replicas={each.min_insync}: a record may be confirmed "
                "that one broker alone has"
            )
            found[text, alter.format(min_insync(each.replication))].append(each.name)
        if each.out_of_sync:
            text = "partitions whose replicas are not all in sync: the loss of another broker can stop or lose them"
            found[text, AWAY].append(each.name)
        if _kept_shorter(each):
            text = (
                f"retention.ms={each.retention_ms} where the catalogue has {each.expected_retention_ms}: a stage, an "
                "operator or a replay that comes later finds no records"
            )
            advice = f"`kafka-configs.sh --alter --add-config retention.ms={each.expected_retention_ms}` changes it"
            found[text, advice].append(each.name)
        if each.timestamps == "LogAppendTime":
            text = "message.timestamp.type=LogAppendTime: a replay cannot repeat the times of their records"
            advice = "`kafka-configs.sh --alter --add-config message.timestamp.type=CreateTime` changes it"
            found[text, advice].append(each.name)
    return [TopicFinding("warning", f"{_listed(names)} {text}", advice) for (text, advice), names in found.items()]


def _named(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"topic {names[0]}"
    return f"{len(names)} topics ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"


def _listed(names: Sequence[str]) -> str:
    return f"{_named(names)} {'has' if len(names) == 1 else 'have'}"


def _in_sync(partition: Any) -> int:
    return len(partition.isrs) if partition.leader >= 0 else 0


def _kept_shorter(topic: TopicState) -> bool:
    kept, expected = topic.retention_ms, topic.expected_retention_ms
    return kept is not None and expected is not None and 0 <= kept < expected  # -1: without limit


def _alter(names: Sequence[str], setting: str) -> str:
    if len(names) == 1:
        return f"`kafka-configs.sh --alter --topic {names[0]} --add-config {setting}` changes it"
    return f"`kafka-configs.sh --alter --add-config {setting}` changes them, with --topic for each"


def _of(topics: dict[str, Any], name: str) -> list[Any]:
    """Return the partitions of a topic, none where it does not exist."""
    return list(topics[name].partitions.values()) if name in topics else []


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None else None
