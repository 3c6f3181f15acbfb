"""The evidence of a fault run: its ledger, and the content of the topics and the store at the end.

The ledger records what no topic contains: the messages that the broker acknowledged, the executions of the hosts, and
the offsets that consumer groups had committed while the faults happened.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import SchemaError
from tamiyo.schemas.topics import BY_NAME, Topic
from tamiyo.streams.headers import ID_HEADER, OUTPUT_HEADER
from tamiyo.streams.messages import Message

Place = tuple[str, int]
"""Topic (without prefix) and partition."""
Held = tuple[str, str, int]
"""Consumer group (without prefix), topic (without prefix) and partition."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One message that the broker has acknowledged."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    valid: bool = True
    """False: made invalid, so it must become a dead letter."""


@dataclass(frozen=True, slots=True)
class Execution:
    """The execution of a decision by a host."""

    decision_id: str
    graph_id: str
    run_id: str


@dataclass(frozen=True, slots=True)
class Sample:
    """The committed offsets at one moment, and the topics' ends a little later.

    An offset is committed only after its output was published, so that output lies before `ends`.
    """

    committed: Mapping[Held, int]
    ends: Mapping[Place, int]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The header of a policy's file in the store, and the file's checksum."""

    version: int
    experiences: int
    updates: int
    offsets: Mapping[str, int]
    checksum: str


@dataclass(slots=True)
class Ledger:
    """What the program itself did and observed. Several threads append to it."""

    sent: list[Sent] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    """A sentence for every process that ended because of a bug."""
    upgraded: bool = False
    """Whether processes of the last release took part."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A message with its record; None if the bytes are no record."""

    message: Message
    record: Any

    @property
    def place(self) -> str:
        """Return topic:partition:offset."""
        return self.message.place


@dataclass(slots=True)
class Evidence:
    """All inputs of the judge."""

    ledger: Ledger
    messages: Mapping[str, Sequence[Message]]
    """Messages by topic without prefix, dead-letter and late topics included, ordered by partition and offset."""
    committed: Mapping[Held, int] = field(default_factory=dict)
    """Committed offsets of every group at the end."""
    checkpoints: Sequence[Checkpoint] = ()
    kernels: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each kernel file in the store, by kernel id."""
    _entries: dict[str, list[Entry]] = field(default_factory=dict)

    def entries(self, topic: Topic) -> list[Entry]:
        """Return a topic's messages, decoded, in order of partition and offset."""
        if topic.name not in self._entries:
            self._entries[topic.name] = [Entry(each, _decoded(each)) for each in self.messages.get(topic.name, ())]
        return self._entries[topic.name]

    def records(self, topic: Topic) -> list[Entry]:
        """Return a topic's messages that are valid records."""
        return [each for each in self.entries(topic) if each.record is not None]

    def first(self, topic: Topic, identity: str) -> dict[str, Entry]:
        """Return the first record under each value of the field `identity`; readers ignore the later ones."""
        found: dict[str, Entry] = {}
        for entry in self.records(topic):
            found.setdefault(getattr(entry.record, identity), entry)
        return found

    def by_partition(self, topic: Topic) -> dict[int, list[Entry]]:
        """Return a topic's records by partition, in order."""
        found: dict[int, list[Entry]] = defaultdict(list)
        for entry in self.records(topic):
            found[entry.message.partition].append(entry)
        return found

    def too_large(self, output: Topic) -> dict[str, Message]:
        """Return the first dead letter that stands for each output that `output` could not hold, by its id."""
        found: dict[str, Message] = {}
        for each in self.dead_letters():
            if each.header(OUTPUT_HEADER) == output.name:
                found.setdefault(each.header(ID_HEADER) or "", each)
        return found

    def dead_letters(self) -> Iterator[Message]:
        """Yield the messages of all topics for dead letters."""
        return (each for name, found in self.messages.items() if name.endswith(".dlq") for each in found)

    def ends(self) -> dict[Place, int]:
        """Return the offset after the last message of every partition that has one."""
        return {(each.topic, each.partition): each.offset + 1 for found in self.messages.values() for each in found}


def _decoded(message: Message) -> Any:
    if message.value is None:
        return None
    try:
        return decode(message.value, BY_NAME[message.topic].record)
    except SchemaError:
        return None
