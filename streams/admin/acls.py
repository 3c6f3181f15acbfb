"""The Kafka permissions that each process of an installation needs, and a check that it has them.

They follow from the catalogue and from how a stage works: it reads its inputs and views, writes its outputs and its
inputs' dead letters and late records, and reads the ends of those back when a partition is assigned.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection

from tamiyo.schemas.client.connection import Connection
from tamiyo.schemas.errors import BrokerError, BrokerRefused, ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CATALOGUE, CHECKPOINTS, EXPERIENCE, Topic
from tamiyo.streams.admin.topics import dead_letter_names, plan
from tamiyo.streams.stages.base import Stage
from tamiyo.streams.stages.registry import STAGES

REQUEST_TIMEOUT_S = 20.0
ROLES = (*STAGES, "learner", "host", "operator", "reader")
OPTIONS = {"include_authorized_operations": True, "request_timeout": REQUEST_TIMEOUT_S}
ABSENT = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.GROUP_ID_NOT_FOUND)
DENIED = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED)


@dataclass(frozen=True, slots=True, order=True)
class Grant:
    """One operation on one topic or consumer group, by its exact name."""

    kind: str
    """`topic` or `group`."""
    name: str
    """On the broker, with the installation's prefix."""
    operation: str

    def command(self, principal: str) -> str:
        """Return the arguments with which `kafka-acls.sh` grants it."""
        return f"--add --allow-principal '{principal}' --operation {self.operation} --{self.kind} '{self.name}'"


def kafka_user(name: str, cluster: str, wanted: Iterable[Grant]) -> dict[str, Any]:
    """Return Strimzi's resource for a user that has these permissions, and logs in with SCRAM-SHA-512.

    Strimzi's user operator creates the user and its ACLs, and a Secret of the same name with the `password`.

    Args:
        name: of the resource and of the user.
        cluster: name of the `Kafka` resource.
        wanted: the permissions.

    Raises:
        ConfigurationError: Kubernetes does not allow the name.
    """
    if len(name) > 253 or not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name):
        raise ConfigurationError(
            f"a KafkaUser cannot be named {name!r}; its name has a-z, 0-9, - and .: choose a --principal like "
            "User:tamiyo-{role}"
        )
    operations: dict[tuple[str, str], list[str]] = {}
    for each in wanted:
        operation = "".join(word.capitalize() for word in each.operation.split("_"))
        operations.setdefault((each.kind, each.name), []).append(operation)
    acls = [
        {"resource": {"type": kind, "name": resource, "patternType": "literal"}, "operations": names}
        for (kind, resource), names in operations.items()
    ]
    return {
        "apiVersion": "kafka.strimzi.io/v1",
        "kind": "KafkaUser",
        "metadata": {"name": name, "labels": {"strimzi.io/cluster": cluster}},
        "spec": {
            "authentication": {"type": "scram-sha-512"},
            "authorization": {"type": "simple", "acls": acls},
        },
    }


def grants(role: str, names: TopicNames) -> list[Grant]:
    """Return the permissions that a role needs, and no others.

    Args:
        role: a stage, `learner`, `host` (the SDK), `operator` (creates and grows topics, reads everything, redrives
            dead letters, forgets runs, publishes orders, steers the policy, describes consumer groups) or `reader` (of
            all topics, describes consumer groups).
        names: the installation's topic names.

    Raises:
        ConfigurationError: there is no such role.
    """
    if role in STAGES:
        return stage_grants(STAGES[role].load(), STAGES[role].group, names)
    if role == "learner":
        writes = [CHECKPOINTS.name, EXPERIENCE.dead_letters]
        return _grants(names, [EXPERIENCE.name, CHECKPOINTS.name], writes, [EXPERIENCE, CHECKPOINTS])
    if role == "host":
        reads = [topic.name for topic in CATALOGUE if "host" in topic.readers]
        return _grants(names, reads, [topic.name for topic in CATALOGUE if topic.writer == "host"], ())
    everything = [each.name for each in plan(CATALOGUE, TopicNames(prefix=""))]
    groups = [Grant("group", names.full(each.group), "DESCRIBE") for each in STAGES.values()]  # members and lag
    if role == "operator":
        redriven = [topic for topic in CATALOGUE if set(topic.readers) & {*STAGES, "learner"}]
        writes = [
            *(topic.name for topic in CATALOGUE if topic.cleanup == "compact"),  # orders, and tombstones
            *(name for topic in redriven for name in (topic.name, topic.dead_letters)),
        ]
        found = [*_grants(names, everything, writes, CATALOGUE), *groups]
        return found + [Grant("topic", names.full(name), each) for each in ("CREATE", "ALTER") for name in everything]
    if role == "reader":
        return [*_grants(names, everything, [], ()), *groups]
    raise ConfigurationError(f"there is no role {role!r}; choose from {', '.join(ROLES)}")


def stage_grants(stage: type[Stage], group: str, names: TopicNames) -> list[Grant]:
    """Return the permissions of a stage in its consumer group (named without prefix)."""
    rejects = [name for topic in stage.inputs for name in dead_letter_names(topic)]
    writes = [*(topic.name for topic in stage.outputs), *rejects]
    reads = [*(topic.name for topic in (*stage.inputs, *stage.views)), *writes]
    found = _grants(names, reads, writes, (*stage.inputs, *stage.outputs, *stage.views))
    return [*found, Grant("group", names.full(group), "READ")]


def _grants(names: TopicNames, reads: Iterable[str], writes: Iterable[str], checked: Iterable[Topic]) -> list[Grant]:
    """Return grants to read and write topics, and to describe the `checked` ones at the start."""
    read, write = dict.fromkeys(reads), dict.fromkeys(writes)
    described = dict.fromkeys(each.name for each in plan(checked, TopicNames(prefix="")))
    by_operation = {
        "READ": read,
        "WRITE": write,
        # READ and WRITE include DESCRIBE.
        "DESCRIBE": [name for name in described if name not in read and name not in write],
        "DESCRIBE_CONFIGS": described,
    }
    return [Grant("topic", names.full(name), operation) for operation, each in by_operation.items() for name in each]


def missing(wanted: Sequence[Grant], kafka: KafkaSettings) -> list[Grant]:
    """Return which of `wanted` the settings' user lacks.

    Nothing is lacking for topics and groups that may be described but do not exist. CREATE is not checked.

    Raises:
        BrokerError: the broker does not respond.
    """
    admin = Connection(kafka).admin
    topics = sorted({each.name for each in wanted if each.kind == "topic"})
    groups = sorted({each.name for each in wanted if each.kind == "group"})
    allowed = _allowed("topic", topics, lambda: admin.describe_topics(TopicCollection(topics), **OPTIONS))
    allowed |= _allowed("group", groups, lambda: admin.describe_consumer_groups(groups, **OPTIONS))
    return [
        each
        for each in wanted
        if each.operation != "CREATE"
        and (operations := allowed[each.kind, each.name]) is not None
        and each.operation not in operations
    ]


def _allowed(
    kind: str, names: Sequence[str], describe: Callable[[], Mapping[str, Any]]
) -> dict[tuple[str, str], set[str] | None]:
    """Return the allowed operations by kind and name; None for what may be described but does not exist."""
    if not names:
        return {}
    deadline = time.monotonic() + REQUEST_TIMEOUT_S
    while True:
        allowed: dict[tuple[str, str], set[str] | None] = {}
        errors: list[KafkaError] = []
        for name, future in describe().items():
            try:
                found = future.result().authorized_operations
                allowed[kind, name] = None if found is None else {operation.name for operation in found}
            except KafkaException as error:
                code = error.args[0].code()
                allowed[kind, name] = set() if code in DENIED else None
                if code not in (*DENIED, *ABSENT):
                    errors.append(error.args[0])
        if not errors:
            return allowed
        # A new cluster creates its topic of groups at the first request.
        if time.monotonic() > deadline:
            raise BrokerError(f"cannot read this user's permissions on {kind}s: {errors[0].name()} {errors[0].str()}")
        time.sleep(0.2)


def require(role: str, wanted: Sequence[Grant], kafka: KafkaSettings) -> None:
    """Raise BrokerRefused, naming what is missing, unless the settings' user has all of `wanted`."""
    lacking = missing(wanted, kafka)
    if lacking:
        user = kafka.sasl_username or "this client"
        shown = ", ".join(f"{each.operation} of {each.kind} {each.name}" for each in lacking[:5])
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise BrokerRefused(
            f"{user} lacks permissions that {role} needs: {shown}{more}; `tamiyo topics acls --role {role}` lists them"
        )
