"""Reads and decodes the records of one topic, for `tamiyo tail`."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from confluent_kafka import Message

from tamiyo.schemas.client.last_messages import last_messages
from tamiyo.schemas.client.partition_reader import OffsetRange, PartitionReader
from tamiyo.schemas.codec import decode
from tamiyo.schemas.columns import ColumnarRecord, Columns
from tamiyo.schemas.errors import BrokerError, ConfigurationError, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.record import Record, Tensor
from tamiyo.schemas.topics import BY_NAME
from tamiyo.streams.admin.brokers import is_embedded
from tamiyo.streams.headers import NOTE_HEADER
from tamiyo.streams.messages import Headers, is_end

RUN_WIDTH = 256  # messages of a partition that are searched first for those of one run


@dataclass(frozen=True, slots=True)
class TopicLine:
    """One message of a topic, decoded."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    headers: dict[str, Any]
    """By name the value as text, null where there is none; a list where a name is repeated."""
    value: dict[str, Any] | None
    """None: the message has no value, as one that removes a key."""
    key: str | None = None

    @property
    def run_id(self) -> str | None:
        """Return the run: the record's, else the key."""
        found = (self.value or {}).get("run_id", self.key)
        return None if found is None else str(found)

    def json(self, change: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> str:
        """Return it as one JSON object, after a change of its values."""
        place = {"topic": self.topic, "partition": self.partition, "offset": self.offset}
        content = {"key": self.key, "headers": self.headers, "value": self.value}
        values = {**place, "timestamp_ms": self.timestamp_ms, **content}
        return json.dumps(values if change is None else change(values))


def catalogue_name(topic: str, names: TopicNames) -> str:
    """Return the name of a topic, or of its `.dlq` or `.late` topic, without prefix.

    Raises ConfigurationError for a name that is not in the catalogue.
    """
    bare = names.bare(topic)
    if source_name(bare) not in BY_NAME:
        raise ConfigurationError(f"no topic {topic!r} in the catalogue; `tamiyo topics list` names them")
    return bare


def follow(
    topic: str,
    kafka: KafkaSettings,
    names: TopicNames,
    *,
    beginning: bool,
    forever: bool,
    limit: int | None = None,
    run_id: str | None = None,
    since_ms: int | None = None,
    last: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[TopicLine]:
    """Yield the messages of a topic.

    Args:
        topic: a catalogue name, or its `.dlq` or `.late`, with or without prefix.
        kafka: the broker.
        names: the installation's topic names.
        beginning: start at the beginning; otherwise at the current end.
        forever: wait for more messages; otherwise stop at the current end.
        limit: stop after this many messages.
        run_id: only messages of this run.
        since_ms: only messages of this Kafka time and later.
        last: start with this many of the newest messages, over all partitions in the order of their times, of those
            that `run_id` and `since_ms` leave.
        stopped: ends it once it returns True.

    Raises:
        ConfigurationError: the catalogue has no such topic.
        BrokerError: the broker does not respond, or has no such topic.
    """
    bare = catalogue_name(topic, names)
    full = names.full(bare)
    wanted = _Wanted(run_id, since_ms, bare)
    with PartitionReader(kafka) as reader:
        ranges = reader.ranges(full)
        if not ranges:
            raise BrokerError(f"the broker has no topic {full}; `tamiyo topics create` creates it")
        parts = ranges if beginning else [replace(each, start=each.end) for each in ranges]
        if since_ms is not None:
            parts = _since(reader, parts, since_ms)
        shown = 0
        for message in _messages(reader, parts, wanted, forever=forever, last=last, stopped=stopped):
            line = read(message, bare)
            if not wanted.line(line):
                continue
            yield line
            shown += 1
            if limit is not None and shown >= limit:
                return


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Selects messages."""

    run_id: str | None
    since_ms: int | None
    bare: str

    def message(self, message: Message) -> bool:
        """Return whether it is selected; decodes only messages that hold the run's id."""
        if self.since_ms is not None and message.timestamp()[1] < self.since_ms:
            return False
        if self.run_id is None:
            return True
        wanted = self.run_id.encode()  # Avro writes texts as they are
        if message.key() != wanted and wanted not in (message.value() or b""):
            return False
        return self.line(read(message, self.bare))

    def line(self, line: TopicLine) -> bool:
        """Return whether it is selected."""
        late_enough = self.since_ms is None or line.timestamp_ms >= self.since_ms
        return late_enough and (self.run_id is None or line.run_id == self.run_id)


def _messages(
    reader: PartitionReader,
    ranges: Sequence[OffsetRange],
    wanted: _Wanted,
    *,
    forever: bool,
    last: int | None,
    stopped: Callable[[], bool],
) -> Iterator[Message]:
    starts = {(each.topic, each.partition): each.start for each in ranges}
    if last is not None:
        # A run is one of many: in its partition there are about as many messages of each.
        width = last if wanted.run_id is None else max(RUN_WIDTH, last)
        yield from last_messages(reader, ranges, last, wanted.message, first_width=width, stopped=stopped)
        starts = {(each.topic, each.partition): each.end for each in ranges}
    if forever:
        reader.assign(starts)
        while not stopped():
            yield from reader.poll()
    elif last is None:
        yield from reader.read(ranges, stopped=stopped)


def _since(reader: PartitionReader, ranges: Sequence[OffsetRange], since_ms: int) -> list[OffsetRange]:
    """Return the parts of ranges from a Kafka time on."""
    if is_embedded(reader.cluster_id()):  # it finds no offsets by time
        return list(ranges)
    found = []
    for each in ranges:
        start = reader.offset_at(each.topic, each.partition, since_ms)
        found.append(replace(each, start=each.end if start is None else min(max(each.start, start), each.end)))
    return found


def read(message: Message, bare: str) -> TopicLine:
    """Decode one message; bytes that are not the topic's record become hex, with the reason."""
    raw: Headers = tuple(message.headers() or ())
    headers: dict[str, Any] = {}
    for name in dict.fromkeys(name for name, _ in raw):
        values = [escaped_header(value) for other, value in raw if other == name]
        headers[name] = values[0] if len(values) == 1 else values
    key = message.key()
    value = _value(message.value(), raw, bare)
    text = None if key is None else key.decode(errors="replace")
    return TopicLine(bare, message.partition(), message.offset(), message.timestamp()[1], headers, value, text)


def _value(value: bytes | None, headers: Headers, bare: str) -> dict[str, Any] | None:
    kind = next((each for name, each in headers if name == NOTE_HEADER), None)
    if kind is not None and bare != source_name(bare):  # among the dead letters, from `tamiyo dlq redrive`
        return {"redrive": kind.decode(errors="replace"), **_note(value)}
    if is_end(value, headers):
        return {"end": "of a partition in a replay"}
    topic = BY_NAME[source_name(bare)]
    if value is None and (topic.cleanup == "compact" or bare != topic.name):
        return None
    try:
        return to_json_values(decode(value, topic.record))
    except SchemaError as error:
        return {"undecodable": str(error), "bytes": (value or b"").hex()}


def _note(value: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(value or b"")
    except ValueError:
        return {"bytes": (value or b"").hex()}
    return found if isinstance(found, dict) else {"note": found}


def escaped_header(value: bytes | None) -> str | None:
    """Return a header's value as text, with bytes that are not UTF-8 escaped; None where it has none."""
    return None if value is None else value.decode("utf-8", "backslashreplace")


def source_name(bare: str) -> str:
    """Return the topic whose messages are on a topic: its own name, or that without `.dlq` or `.late`."""
    return bare.removesuffix(".dlq") if bare.endswith(".dlq") else bare.removesuffix(".late")


def to_json_values(record: Record) -> dict[str, Any]:
    """Return a record as JSON values: tensors and columns as lists, masks as lists of 0 and 1."""
    if isinstance(record, ColumnarRecord):
        kept = [name for name, field in type(record).model_fields.items() if field.annotation is not Columns]
        return {**{name: _plain(getattr(record, name)) for name in kept}, **record.lists()}
    return {name: _plain(getattr(record, name)) for name in type(record).model_fields}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.numpy().tolist()
    if isinstance(value, Record):
        return to_json_values(value)
    if isinstance(value, bytes):
        return list(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
