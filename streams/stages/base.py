"""What a stage is, without Kafka: a deterministic function of a bounded stretch of its input partition.

A `Stage` object holds the state of one stage for one partition. The runner (`streams/runtime/stage_runner.py`) creates
one when the partition is assigned, restores what it had already published, feeds it decoded records in order, publishes
what it returns, awaits the deliveries, and only then commits the inputs below the stage's lowest open offset.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import Topic

SHORT_ID = 16
"""Hex digits of an id that tell it from all others that a stage remembers: 64 bits."""

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Incoming:
    """One input record, with where it came from."""

    topic: str
    """Catalogue name, without the installation's prefix."""
    partition: int
    offset: int
    timestamp_ms: int
    record: Any
    """The decoded record, of the topic's record type."""
    raw: bytes = b""
    """The bytes as they came, for the dead letters."""
    key: bytes | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One record to publish to `topic` under its run's key."""

    topic: Topic
    record: Record
    identity: str
    """Deterministic id; what was published under it before is not published again."""
    source: Incoming | None
    """The input whose arrival closed this; None when a clock did. Its topic, partition and offset go into headers."""
    member_ids: Sequence[str] = ()
    """Ids of the inputs that this holds, for a stage that must know them again after a restart; also a header."""


@dataclass(frozen=True, slots=True)
class Reject:
    """An input that cannot be used: it goes, as it came, to `<topic>.dlq` or `<topic>.late`, and the flow goes on."""

    source: Incoming
    reason: str
    late: bool = False
    poison: bool = False
    """Whether the stage's own code failed on it; it is not fed again, even where it is read again."""


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
    """The first `SHORT_ID` digits of the ids of the inputs inside, as far as there was room to name them."""


class View(Protocol[R_co]):
    """The newest record under each key of a compacted topic."""

    def get(self, key: str) -> R_co | None:
        """Return the newest record under `key`, or None."""

    def items(self) -> Iterable[tuple[str, R_co]]:
        """Return all keys with their newest record."""


class Stage(Protocol):
    """The state of one stage for one partition."""

    name: ClassVar[str]
    inputs: ClassVar[tuple[Topic, ...]]
    outputs: ClassVar[tuple[Topic, ...]]
    views: ClassVar[tuple[Topic, ...]]
    """Compacted topics read whole before the first record is fed."""

    def restore(self, said: Iterable[PriorOutput]) -> None:
        """Learn what this partition's stage had already published, oldest first, before anything is fed."""

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        """Take records in order of arrival; return what to publish now, in order."""

    def tick(self, now_ms: int) -> Sequence[Output | Reject]:
        """Do what only time can trigger: idle runs, held records whose topology has come, overdue answers."""

    def open_offsets(self) -> Mapping[str, int]:
        """Return for each input topic the lowest offset still needed; a topic that is absent needs nothing."""
