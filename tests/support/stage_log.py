"""Runs stages as the runner does: feed, publish what is new, commit below what is open, crash, restart."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import Topic
from tamiyo.streams.stages.base import Incoming, Output, PriorOutput, Reject, Stage


class FixedView:
    """A view of a compacted topic whose records a test puts in."""

    def __init__(self, records: Mapping[str, Any] | None = None) -> None:
        self.records = dict(records or {})

    def get(self, key: str) -> Any:
        return self.records.get(key)

    def items(self) -> list[tuple[str, Any]]:
        return list(self.records.items())


class Log:
    """Appends records to topics of one partition, each with the next offset."""

    def __init__(self) -> None:
        self.messages: list[Incoming] = []
        self._next: dict[str, int] = {}

    def add(self, topic: Topic, record: Record) -> Incoming:
        offset = self._next.get(topic.name, 0)
        self._next[topic.name] = offset + 1
        incoming = Incoming(topic.name, 0, offset, 0, record)
        self.messages.append(incoming)
        return incoming


@dataclass
class StageHarness:
    """Keeps what was published and committed across crashes of the stage."""

    make: Callable[[], Stage]
    log: list[Incoming]
    published: list[Output] = field(default_factory=list)
    rejected: list[Reject] = field(default_factory=list)
    committed: dict[str, int] = field(default_factory=dict)
    stage: Any = None
    _read: dict[str, int] = field(default_factory=dict)
    _read_when_published: list[dict[str, int]] = field(default_factory=list)

    def run(self, until: int | None = None, *, batch: int = 1) -> "StageHarness":
        """Start or restart the stage and feed the log, from the committed offsets up to message `until`."""
        self.stage = self.make()
        self.stage.restore(self._tail())
        due = [each for each in self.log[:until] if each.offset >= self.committed.get(each.topic, 0)]
        positions = self._read = dict(self.committed)
        for start in range(0, len(due), batch):
            part = due[start : start + batch]
            for each in part:
                positions[each.topic] = each.offset + 1
            self.take(self.stage.feed(part))
            needed = self.stage.open_offsets()
            for topic, position in positions.items():
                bound = min(needed.get(topic, position), position)
                assert bound >= self.committed.get(topic, 0), f"{topic}: a committed record is needed again"
                self.committed[topic] = bound
        return self

    def _tail(self) -> list[PriorOutput]:
        """Return what was published after a record beyond the committed offsets was read; only that is read back."""
        # Outputs that a test put in count as published by a stage that had read beyond the committed offsets.
        read = [*[{"": 1}] * (len(self.published) - len(self._read_when_published)), *self._read_when_published]
        tail = []
        for index, (each, positions) in enumerate(zip(self.published, read, strict=True)):
            if any(offset > self.committed.get(topic, 0) for topic, offset in positions.items()):
                sources = {} if each.source is None else {each.source.topic: each.source.offset}
                tail.append(PriorOutput(each.topic.name, index, each.record, each.identity, sources, each.member_ids))
        return tail

    def take(self, produced: Sequence[Output | Reject]) -> None:
        """Publish the outputs that were not published before; keep the rejects."""
        known = {(each.topic.name, each.identity) for each in self.published}
        for each in produced:
            if isinstance(each, Reject):
                self.rejected.append(each)
            elif (each.topic.name, each.identity) not in known:
                assert decode(encode(each.record), type(each.record)) == each.record
                self.published.append(each)
                self._read_when_published.append(dict(self._read))

    def records(self, topic: Topic) -> list[Any]:
        """Return the records published to `topic`, in order."""
        return [each.record for each in self.published if each.topic is topic]
