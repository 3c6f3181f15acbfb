"""Compares the records of two runs byte by byte, under the same ids, for `tamiyo diff`."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tamiyo.schemas.codec import current_body, decode
from tamiyo.schemas.columns import Columns
from tamiyo.schemas.errors import ConfigurationError, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import DECISIONS, GRAPHS, WINDOWS, Topic
from tamiyo.streams.admin.topic_tail import to_json_values
from tamiyo.streams.headers import ID_HEADER
from tamiyo.streams.messages import Message
from tamiyo.streams.recording.recording import Recording
from tamiyo.streams.recording.topic_reader import Selection, TopicReader

COMPARED = (WINDOWS, GRAPHS, DECISIONS)
TOPICS_SCHEME = "topics:"
ID_FIELDS = ("decision_id", "graph_id", "window_id", "signal_id")  # the first that a record has identifies it
SHOWN = 200  # characters of a value


class Side(Protocol):
    """One side of a comparison: a recording, or topics under a prefix."""

    def messages(self, topic: Topic) -> Iterator[Message]:
        """Yield a topic's messages; every call yields the same ones while none is added."""


class TopicsSide:
    """Topics under a prefix."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        self._kafka = kafka
        self._names = names

    def messages(self, topic: Topic) -> Iterator[Message]:
        """Yield the topic's current messages; raises BrokerError where there is no such topic."""
        with closing(TopicReader(self._kafka, self._names)) as reader:
            yield from reader.messages(reader.resolve(Selection(topics=(topic.name,))))


class RecordingSide:
    """A recording, whose files are verified."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._verified: set[str] = set()

    def messages(self, topic: Topic) -> Iterator[Message]:
        """Yield the recorded messages; raises RecordingError where a file is damaged."""
        if topic.name not in self._verified:
            self._recording.verify([topic])
            self._verified.add(topic.name)
        yield from self._recording.messages(topic)


def side(text: str, kafka: Callable[[], KafkaSettings]) -> Side:
    """Return the side that `text` names.

    Args:
        text: a recording's folder, or `topics:PREFIX`.
        kafka: returns the broker's settings; called for topics only.

    Raises:
        RecordingError: the folder is not a recording.
        ConfigurationError: there is no such folder.
    """
    if text.startswith(TOPICS_SCHEME):
        return TopicsSide(kafka(), TopicNames(prefix=text.removeprefix(TOPICS_SCHEME)))
    folder = Path(text)
    if not folder.is_dir():
        raise ConfigurationError(f"there is no folder {text}; topics on the broker are named topics:PREFIX")
    return RecordingSide(Recording(folder))


@dataclass(frozen=True, slots=True)
class Place:
    """Where two records under one id first differ."""

    identity: str
    run_id: str
    field: str
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class Difference:
    """The result of comparing one topic."""

    topic: str
    same: int
    """Ids with the same bytes on both sides."""
    differ: int
    """Ids with different bytes."""
    left_only: int
    right_only: int
    contradictions: int
    """Ids with different bytes within one side; the first ones are compared."""
    first: Place | None
    """The first record of the left side that differs."""

    @property
    def equal(self) -> bool:
        """Return whether both sides have the same records and no contradictions."""
        return not (self.differ or self.left_only or self.right_only or self.contradictions)


def compare(
    left: Side,
    right: Side,
    topics: Sequence[Topic] = COMPARED,
    *,
    runs: Sequence[str] = (),
    ignore: Collection[str] = (),
    progress: Callable[[int], None] = lambda _: None,
) -> list[Difference]:
    """Compare topic by topic; memory grows with the number of ids, not with the size of the records.

    Args:
        left: One side.
        right: The other side.
        topics: What to compare.
        runs: Compare only these runs; all when empty.
        ignore: Fields that may differ. Records that have one are compared by their other fields' values, all others
            by their bytes, which those of an older version would have today.
        progress: Called with the number of messages read since the last call.

    Raises:
        ConfigurationError: `ignore` names a field that no record of `topics` has.
    """
    for field in ignore:
        if not any(field in _fields(topic) for topic in topics):
            names = ", ".join(topic.name for topic in topics)
            raise ConfigurationError(f"cannot ignore field {field!r}: no record of {names} has it")
    return [_compare(left, right, topic, {run.encode() for run in runs}, set(ignore), progress) for topic in topics]


def _compare(
    left: Side, right: Side, topic: Topic, runs: set[bytes], ignore: set[str], progress: Callable[[int], None]
) -> Difference:
    ignored = ignore & _fields(topic)
    ours, left_contradictions = _digests(left, topic, runs, ignored, progress)
    theirs, right_contradictions = _digests(right, topic, runs, ignored, progress)
    common = [name for name in ours if name in theirs]
    differ = [name for name in common if ours[name] != theirs[name]]
    first = _place(left, right, topic, differ[0], ignored) if differ else None
    return Difference(
        topic.name,
        len(common) - len(differ),
        len(differ),
        len(ours) - len(common),
        len(theirs) - len(common),
        left_contradictions + right_contradictions,
        first,
    )


def _digests(
    side: Side, topic: Topic, runs: set[bytes], ignored: set[str], progress: Callable[[int], None]
) -> tuple[dict[str, bytes], int]:
    found: dict[str, bytes] = {}
    contradictions: set[str] = set()
    for message in side.messages(topic):
        progress(1)
        if message.value is None or (runs and message.key not in runs):
            continue
        name = _identity(message, topic)
        digest = hashlib.blake2b(_compared_bytes(message.value, topic, ignored), digest_size=16).digest()
        if found.setdefault(name, digest) != digest:
            contradictions.add(name)
    return found, len(contradictions)


def _compared_bytes(value: bytes, topic: Topic, ignored: set[str]) -> bytes:
    """Return a record's bytes in its current encoding, or, if it has ignored fields, the values of its other fields."""
    try:
        if not ignored:
            return current_body(value, topic.record)
        shown = to_json_values(decode(value, topic.record))
        return json.dumps({name: each for name, each in shown.items() if name not in ignored}).encode()
    except SchemaError:
        return value


def _fields(topic: Topic) -> set[str]:
    """Return the fields of a topic's records as people see them, lists instead of columns."""
    fields = topic.record.model_fields.items()
    return {name for name, field in fields if field.annotation is not Columns} | topic.record.released_fields


def _identity(message: Message, topic: Topic) -> str:
    name = message.header(ID_HEADER)
    if name is not None:
        return name
    try:
        record = decode(message.value, topic.record)
    except SchemaError:
        return message.place
    return str(next((getattr(record, field) for field in ID_FIELDS if hasattr(record, field)), message.place))


def _place(left: Side, right: Side, topic: Topic, name: str, ignored: set[str]) -> Place:
    values = [next(m for m in side.messages(topic) if _identity(m, topic) == name) for side in (left, right)]
    run_id = (values[0].key or b"").decode("utf-8", "replace")
    try:
        records = [to_json_values(decode(each.value, topic.record)) for each in values]
    except SchemaError as error:
        return Place(name, run_id, "(bytes)", "?", f"cannot be read: {error}"[:SHOWN])
    for record in records:
        for field in ignored:
            del record[field]
    path, a, b = first_difference(records[0], records[1]) or ("(bytes)", "the same values", "in another encoding")
    return Place(name, run_id, path, _short(a), _short(b))


def first_difference(left: Any, right: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Return (field, left value, right value) of the first field that differs, None where none does."""
    if isinstance(left, dict) and isinstance(right, dict):
        for name in [*left, *(each for each in right if each not in left)]:
            inner = f"{path}.{name}" if path else str(name)
            if name not in left or name not in right:
                return inner, left.get(name, "absent"), right.get(name, "absent")
            found = first_difference(left[name], right[name], inner)
            if found is not None:
                return found
        return None
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        pairs = enumerate(zip(left, right, strict=True))
        return next((found for i, (a, b) in pairs if (found := first_difference(a, b, f"{path}[{i}]"))), None)
    return None if left == right else (path, left, right)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
