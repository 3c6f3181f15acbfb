"""Reads and decodes the records of one topic, for `tamiyo tail`."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Message

from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.codec import decode
from tamiyo.schemas.columns import ColumnarRecord, Columns
from tamiyo.schemas.display import printable
from tamiyo.schemas.errors import BrokerError, ConfigurationError, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.record import Record, Tensor
from tamiyo.schemas.topics import BY_NAME
from tamiyo.streams.headers import NOTE_HEADER
from tamiyo.streams.messages import Headers, is_end

SHORT = 40  # characters of a text that fits a row


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

    def json(self) -> str:
        """Return it as one JSON object."""
        place = {"topic": self.topic, "partition": self.partition, "offset": self.offset}
        content = {"key": self.key, "headers": self.headers, "value": self.value}
        return json.dumps({**place, "timestamp_ms": self.timestamp_ms, **content})

    def row(self) -> str:
        """Return it as columns: partition, offset, time, run, and the fields with one short value."""
        fields = "  ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={printable(str(value))}"
            for name, value in ({"value": "null"} if self.value is None else self.value).items()
            if name != "run_id"
            and (isinstance(value, int | float) or (isinstance(value, str) and 0 < len(value) <= SHORT))
        )
        time = datetime.fromtimestamp(self.timestamp_ms / 1_000, UTC).strftime("%H:%M:%S.%f")[:-3]
        run_id = printable(self.run_id or "-")
        return f"{self.partition:>3} {self.offset:>8}  {time}  {run_id:<16}  {fields}"


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
        stopped: ends it once it returns True.

    Raises:
        ConfigurationError: the catalogue has no such topic.
        BrokerError: the broker does not respond, or has no such topic.
    """
    bare = catalogue_name(topic, names)
    full = names.full(bare)
    with PartitionReader(kafka) as reader:
        ranges = reader.ranges(full)
        if not ranges:
            raise BrokerError(f"the broker has no topic {full}; `tamiyo topics create` creates it")
        if forever:
            starts = {(full, each.partition): each.start if beginning else each.end for each in ranges}
            messages = _endless(reader, starts, stopped)
        else:
            messages = reader.read(ranges if beginning else [], stopped=stopped)
        shown = 0
        for message in messages:
            line = read(message, bare)
            if run_id is not None and line.run_id != run_id:
                continue
            yield line
            shown += 1
            if limit is not None and shown >= limit:
                return


def _endless(
    reader: PartitionReader, starts: Mapping[tuple[str, int], int], stopped: Callable[[], bool]
) -> Iterator[Message]:
    reader.assign(starts)
    while not stopped():
        yield from reader.poll()


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
