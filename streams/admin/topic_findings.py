"""How the topics on a broker differ from what an installation needs, each difference with what to do."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tamiyo.schemas.kafka import BATCH_BYTES
from tamiyo.schemas.settings import variable
from tamiyo.streams.settings import WorkerSettings

_LARGEST = variable(WorkerSettings, "max_message_bytes")
REPLICATION = 3
"""Replicas of a partition: with one broker away, every record still has two."""
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


def needed_bytes() -> int:
    """Return the max.message.bytes that topics need, for messages as large as a worker's settings allow."""
    return WorkerSettings().max_message_bytes + BATCH_BYTES


def min_insync(replication: int) -> int:
    """Return how many replicas must have a record before its delivery is confirmed.

    Two, where one broker may be away nevertheless: then a record that is confirmed survives the loss of a broker.
    """
    return 2 if replication >= REPLICATION else 1


def problems(states: Sequence[TopicState]) -> list[TopicFinding]:
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
        text = (
            f"max.message.bytes={topic.max_batch_bytes}, but {needed} is needed for the largest messages that "
            f"{_LARGEST} allows"
        )
        yield text, f"max.message.bytes={needed}"
    if topic.min_insync is not None and topic.min_insync > topic.replication:
        text = f"min.insync.replicas={topic.min_insync} and replication {topic.replication}: nobody can publish"
        yield text, f"min.insync.replicas={min_insync(topic.replication)}"
    elif topic.in_sync is not None and topic.in_sync < (least := topic.min_insync or 1):
        text = f"partitions with {topic.in_sync} replicas in sync where {least} must be: nobody can publish to them"
        yield text, AWAY


def risks(states: Sequence[TopicState], brokers: int) -> list[TopicFinding]:
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


def _kept_shorter(topic: TopicState) -> bool:
    kept, expected = topic.retention_ms, topic.expected_retention_ms
    return kept is not None and expected is not None and 0 <= kept < expected  # -1: without limit


def _alter(names: Sequence[str], setting: str) -> str:
    if len(names) == 1:
        return f"`kafka-configs.sh --alter --topic {names[0]} --add-config {setting}` changes it"
    return f"`kafka-configs.sh --alter --add-config {setting}` changes them, with --topic for each"
