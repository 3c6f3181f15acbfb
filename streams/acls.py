"""What each process of an installation must be allowed to do on Kafka, and whether it is.

Everything follows from the catalogue and from how a stage works: it reads its inputs and views, writes its outputs and
its inputs' dead letters and late records, and reads the ends of those back when a partition is assigned.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CATALOGUE, CHECKPOINTS, CONTROL, EXPERIENCE, Topic
from tamiyo.streams.stages import STAGES
from tamiyo.streams.topics import Topics, dead_letter_names, plan

REQUEST_TIMEOUT_S = 20.0
ROLES = (*STAGES, "learner", "host", "operator", "reader")
IMPLIED = {"DESCRIBE": ("READ", "WRITE"), "DESCRIBE_CONFIGS": ()}
"""Kafka's own rule: whoever may read or write a topic may describe it."""


@dataclass(frozen=True, slots=True, order=True)
class Grant:
    """One operation on one topic or consumer group, by its exact name."""

    kind: str
    """`topic` or `group`."""
    name: str
    """On the broker, with the installation's prefix."""
    operation: str

    def command(self, principal: str) -> str:
        """Return the arguments of `kafka-acls.sh` that grant it."""
        return f"--add --allow-principal {principal} --operation {self.operation} --{self.kind} '{self.name}'"


def grants(role: str, names: TopicNames) -> list[Grant]:
    """Return what `role` needs, no more: a stage, `learner`, `host` (the SDK), `operator`, or `reader` (of all topics).

    An operator creates topics, reads everything, sends dead letters back and gives orders.
    Raises ConfigurationError for another role.
    """
    if role in STAGES:
        stage = STAGES[role].load()
        aside = [name for topic in stage.inputs for name in dead_letter_names(topic)]
        said = [*(topic.name for topic in stage.outputs), *aside]
        reads = [*(topic.name for topic in (*stage.inputs, *stage.views)), *said]
        checked: Iterable[Topic] = (*stage.inputs, *stage.outputs, *stage.views)
        return _all(names, reads, said, checked, [STAGES[role].group])
    if role == "learner":
        checked = (EXPERIENCE, CHECKPOINTS)
        writes = [CHECKPOINTS.name, EXPERIENCE.dead_letters]
        return _all(names, [EXPERIENCE.name, CHECKPOINTS.name], writes, checked, [])
    if role == "host":
        reads = [topic.name for topic in CATALOGUE if "host" in topic.readers]
        return _all(names, reads, [topic.name for topic in CATALOGUE if topic.writer == "host"], (), [])
    everything = [each.name for each in plan(CATALOGUE, TopicNames(prefix=""))]
    if role == "operator":
        writes = [CONTROL.name, *(topic.name for topic in CATALOGUE if set(topic.readers) & set(STAGES))]
        found = _all(names, everything, writes, CATALOGUE, [])
        return [*found, *(Grant("topic", names.full(name), "CREATE") for name in everything)]
    if role == "reader":
        return _all(names, everything, [], (), [])
    raise ConfigurationError(f"there is no role {role!r}; choose from {', '.join(ROLES)}")


def _all(
    names: TopicNames,
    reads: Iterable[str],
    writes: Iterable[str],
    checked: Iterable[Topic],
    groups: Iterable[str],
) -> list[Grant]:
    read, write = dict.fromkeys(reads), dict.fromkeys(writes)
    looked_at = [each.name for each in plan(checked, TopicNames(prefix=""))]
    found = [Grant("topic", names.full(name), "READ") for name in read]
    found += [Grant("topic", names.full(name), "WRITE") for name in write]
    # At the start a process sees that topics exist and are as the catalogue says.
    found += [Grant("topic", names.full(name), "DESCRIBE") for name in looked_at if name not in (*read, *write)]
    found += [Grant("topic", names.full(name), "DESCRIBE_CONFIGS") for name in looked_at]
    return found + [Grant("group", names.full(group), "READ") for group in groups]


def missing(wanted: Iterable[Grant], kafka: KafkaSettings, names: TopicNames) -> list[Grant]:
    """Return which of `wanted` the user of the settings does not have.

    A topic that does not exist, or that the user may not even see, lacks everything. CREATE is not looked at: the
    broker tells it of the cluster only. Raises BrokerError where the broker does not answer.
    """
    asked = [each for each in wanted if each.operation != "CREATE"]
    topics = Topics(kafka, names)
    if topics.embedded():
        return []  # it knows no users
    allowed = topics.allowed(
        [each.name for each in asked if each.kind == "topic"], [each.name for each in asked if each.kind == "group"]
    )
    return [each for each in asked if each.operation not in allowed[each.kind].get(each.name, ())]
