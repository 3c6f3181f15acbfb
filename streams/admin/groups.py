"""The consumer groups of the stages: their members, the partitions that nobody has, and the committed lag."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException

from tamiyo.schemas.client.connection import Connection
from tamiyo.schemas.client.partition_reader import PartitionReader, Place
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CATALOGUE, Topic
from tamiyo.streams.stages.registry import STAGES

REQUEST_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Membership:
    """Who is in a consumer group."""

    members: int = 0
    rebalancing: bool = False
    """Whether partitions are being assigned."""
    unassigned: Sequence[Place] = ()
    """Input partitions that no member has."""


@dataclass(frozen=True, slots=True)
class StageGroup:
    """The consumer group of one stage."""

    stage: str
    group: str
    """With the installation's prefix."""
    lag: dict[str, int] = field(default_factory=dict)
    """Records after the committed offsets, by input topic on the broker."""


def inputs(stage: str) -> tuple[Topic, ...]:
    """Return the topics that a stage consumes in its group, by the catalogue.

    It reads the compacted ones as views, whole and without committing.
    """
    return tuple(topic for topic in CATALOGUE if stage in topic.readers and topic.cleanup == "delete")


def stage_groups(kafka: KafkaSettings, names: TopicNames) -> list[StageGroup]:
    """Return the groups of all stages with their committed lag; all of a partition where nothing is committed.

    Raises:
        BrokerError: offsets cannot be read.
    """
    bounds: dict[Place, tuple[int, int]] = {}
    found = []
    for stage, entry in STAGES.items():
        group = names.full(entry.group)
        with PartitionReader(kafka, group) as reader:
            existing = reader.topics()
            wanted = {names.full(topic.name) for topic in inputs(stage)} & existing.keys()
            places = [(topic, number) for topic in sorted(wanted) for number in existing[topic]]
            committed = reader.committed(places) if places else {}
            lag = dict.fromkeys(sorted(wanted), 0)
            for place in places:
                if place not in bounds:
                    bounds[place] = reader.bounds(*place)
                low, high = bounds[place]
                lag[place[0]] += max(0, high - max(low, committed.get(place, low)))
        found.append(StageGroup(stage, group, lag))
    return found


def memberships(kafka: KafkaSettings, groups: Sequence[StageGroup]) -> dict[str, Membership | BrokerError]:
    """Return the members of each group by stage, or why they cannot be read; the embedded broker has no such request.

    Args:
        kafka: the broker.
        groups: of the stages.
    """
    admin = Connection(kafka).admin
    with PartitionReader(kafka) as reader:
        existing = reader.topics()
    described = admin.describe_consumer_groups([each.group for each in groups], request_timeout=REQUEST_TIMEOUT_S)
    found: dict[str, Membership | BrokerError] = {}
    for each in groups:
        places = [(topic, number) for topic in each.lag for number in existing.get(topic, ())]
        try:
            group = described[each.group].result()
        except KafkaException as error:
            reason = error.args[0]
            absent = reason.code() == KafkaError.GROUP_ID_NOT_FOUND  # it never had a member, or lost all commits
            found[each.stage] = (
                Membership(unassigned=places)
                if absent
                else BrokerError(f"consumer group {each.group} cannot be read: {reason.str()}")
            )
            continue
        assigned = {
            (one.topic, one.partition)
            for member in group.members
            for one in (member.assignment.topic_partitions if member.assignment is not None else ())
        }
        found[each.stage] = Membership(
            len(group.members),
            group.state.name in ("PREPARING_REBALANCING", "COMPLETING_REBALANCING"),
            [place for place in places if place not in assigned],
        )
    return found
