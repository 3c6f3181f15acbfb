"""Removes the topics, consumer groups and registered schemas of a replay."""

from confluent_kafka import KafkaError, KafkaException
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from tamiyo.schemas.client.connection import Connection
from tamiyo.schemas.client.registry import RegistrySettings
from tamiyo.schemas.errors import BrokerError, ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.replay.subjects import ReplaySubjects
from tamiyo.streams.stages.registry import STAGES

LEAVING_S = 30.0
"""How long to wait for members to leave: a killed worker stays one until its session expires, within seconds."""


class _StillMembers(BrokerError):
    """A consumer group has members."""


def discard(
    prefix: str,
    kafka: KafkaSettings,
    live: TopicNames,
    registry: RegistrySettings | None = None,
    *,
    keep_subjects: bool = False,
) -> int:
    """Remove the topics, the consumer groups and the subjects of the schema registry under a replay's prefix.

    Args:
        prefix: the replay's.
        kafka: the broker.
        live: topic names of the installation, which are refused.
        registry: the schema registry; None: the environment's.
        keep_subjects: whether the registered schemas stay.

    Returns:
        The number of topics removed.

    Raises:
        ConfigurationError: they are not a replay's: only a replay's topics keep records without limit, and only its
            subjects require no compatibility.
        BrokerError: the broker or the registry does not respond, or a group keeps its members.
    """
    if not prefix or prefix == live.prefix:
        raise ConfigurationError(f"the prefix {prefix!r} is the installation's own: nothing is removed")
    names = TopicNames(prefix=prefix)
    topics = Topics(kafka, names)
    kept = [each.name for each in topics.states() if each.partitions and each.retention_ms != -1]
    if kept:
        raise ConfigurationError(f"topic {kept[0]} was not created by a replay: nothing is removed")
    subjects = ReplaySubjects(names, registry or RegistrySettings())
    if foreign := subjects.foreign():
        raise ConfigurationError(f"subject {foreign[0]} was not registered by a replay: nothing is removed")
    removed = topics.delete()
    for attempt in Retrying(
        retry=retry_if_exception_type(_StillMembers),
        stop=stop_after_delay(LEAVING_S),
        wait=wait_fixed(0.5),
        reraise=True,
    ):
        with attempt:
            _remove_groups(kafka, names)
    if not keep_subjects:
        subjects.remove()
    return len(removed)


def _remove_groups(kafka: KafkaSettings, names: TopicNames) -> None:
    groups = groups_under(kafka, names)
    if not groups:
        return
    admin = Connection(kafka).admin  # kept: without it, its futures never complete
    for group, future in admin.delete_consumer_groups(groups, request_timeout=20).items():
        try:
            future.result(timeout=30)
        except (KafkaException, TimeoutError) as error:
            problem = error.args[0] if isinstance(error, KafkaException) else None
            reason = problem.str() if problem else "no response in 30 s"
            members = problem is not None and problem.code() == KafkaError.NON_EMPTY_GROUP
            kind = _StillMembers if members else BrokerError
            raise kind(f"consumer group {group} could not be removed: {reason}") from error


def groups_under(kafka: KafkaSettings, names: TopicNames) -> list[str]:
    """Return the stages' consumer groups that exist under a prefix."""
    wanted = {names.full(entry.group) for entry in STAGES.values()}
    admin = Connection(kafka).admin  # kept: without it, its future never completes
    try:
        listed = admin.list_consumer_groups(request_timeout=20).result(timeout=30)
    except (KafkaException, TimeoutError) as error:
        raise BrokerError(f"cannot list consumer groups: {error or 'no response in 30 s'}") from error
    return sorted(each.group_id for each in listed.valid if each.group_id in wanted)
