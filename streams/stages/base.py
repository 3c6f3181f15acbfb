"""The interface of a stage: a deterministic function of a bounded range of its input partition, without Kafka.

A `Stage` object holds the state of one stage for one partition. The runner (`streams/runtime/stage_runner.py`) creates
one when the partition is assigned, restores what it had already published, feeds it decoded records in order, publishes
what it returns, awaits the deliveries, and only then commits the inputs below the stage's lowest open offset.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from tamiyo.schemas.codec import decode
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import Topic
from tamiyo.streams.messages import Headers

SHORT_ID = 16
"""Hex digits (64 bits) of an id that suffice to distinguish it from all others in a stage's state."""

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Incoming:
    """One input record and its place on the log."""

    topic: str
    """Catalogue name, without the installation's prefix."""
    partition: int
    offset: int
    timestamp_ms: int
    record: Any
    """The decoded record, of the topic's record type or what the stage's `decode` makes of it."""
    raw: bytes | None = b""
    """The value as it was received, for a dead letter."""
    key: bytes | None = None
    headers: Headers = ()
    """As they were received, for a dead letter."""


@dataclass(frozen=True, slots=True)
class Output:
    """One record to publish to `topic` under its run's key."""

    topic: Topic
    record: Record
    identity: str
    """Deterministic id: an output is published once under it."""
    source: Incoming | None
    """The input whose arrival closed this; None if time did. Its topic, partition and offset go into a header."""
    member_ids: Sequence[str] = ()
    """Ids of the inputs that this contains, for a stage that must recognise them after a restart; also a header."""


@dataclass(frozen=True, slots=True)
class Reject:
    """An unusable input: it is published to `<topic>.dlq` or `<topic>.late` with its headers, and the flow goes on."""

    source: Incoming
    reason: str
    late: bool = False
    poison: bool = False
    """Whether the stage's own code failed on it; it is never fed again, even if it is read again."""


@dataclass(frozen=True, slots=True)
class PriorOutput:
    """One record this stage published before, read back from its own output partition."""

    topic: str
    offset: int
    record: Any
    identity: str
    sources: Mapping[str, int] = field(default_factory=dict)
    """Input topic to the offset that closed it."""
    member_ids: Sequence[str] = ()
    """The first `SHORT_ID` digits of the ids of the inputs it contains, of the first thousand."""


class View(Protocol[R_co]):
    """The newest record under each key of a compacted topic."""

    def get(self, key: str) -> R_co | None:
        """Return the newest record under `key`, or None."""

    def items(self) -> Iterable[tuple[str, R_co]]:
        """Return all keys with their newest record."""


class Stage(ABC):
    """The state of one stage for one partition: a deterministic function of what it is fed.

    A stage has no Kafka in it. The runner creates it, restores it, feeds it, publishes what it returns, and commits
    the inputs below `open_offsets`. Calls never overlap.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[Topic, ...]]
    outputs: ClassVar[tuple[Topic, ...]]
    views: ClassVar[tuple[Topic, ...]]
    """Compacted topics that are read completely before the first record is fed."""
    offload: ClassVar[bool] = False
    """Whether `feed` and `tick` run in a thread, so that a long computation does not block other stages."""

    backlog: int | None = None
    """Records known to wait on the log, set before each `feed` and `tick`; None if unknown, as in a replay."""

    @classmethod
    def check(cls, settings: Any) -> None:
        """Raise ConfigurationError if the stage cannot work with `settings`; called once, before a worker starts."""
        return

    @classmethod
    def stores(cls, settings: Any) -> Mapping[str, bool]:
        """Return the URLs of the installation's stores that the stage uses, and whether it writes to each."""
        return {}

    @classmethod
    def decode(cls, topic: Topic, value: bytes | None) -> Any:
        """Return an input's record; a stage may read some of its inputs in a form that costs less.

        Args:
            topic: One of `inputs`.
            value: The message's value.

        Raises:
            SchemaError: It is not such a record.
        """
        return decode(value, topic.record)

    @abstractmethod
    def __init__(self, partition: int, settings: Any, views: Mapping[str, View[Any]]) -> None:
        """Create the state of `partition`; `views` holds the newest record per key of each topic in `views`."""

    @abstractmethod
    def restore(self, outputs: Iterable[PriorOutput]) -> None:
        """Rebuild state from what this partition's stage has published, each topic's oldest first, before any feed."""

    @abstractmethod
    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        """Process records in order of arrival; return what to publish now, in order."""

    @abstractmethod
    def tick(self, now_ms: int) -> Sequence[Output | Reject]:
        """Do what only time can trigger: close idle runs, release held records, give up on overdue outcomes."""

    @abstractmethod
    def open_offsets(self) -> Mapping[str, int]:
        """Return for each input topic the lowest offset still needed; an absent topic needs nothing."""

    def forget(self, output: Output) -> None:
        """Let the output's input make it again: it was too large to be published, and its input may be redriven.

        Called between two calls of the stage. Nothing by default: what is made of several inputs is not made again.
        """
        return

    def flush(self) -> Sequence[Output | Reject]:
        """Return what the stage still holds when a replay has ended all its inputs; by default nothing."""
        return ()
