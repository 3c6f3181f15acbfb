"""Encodes records to bytes and decodes them. A reader accepts both framings, whichever the writer uses.

Without a schema registry: Avro single-object encoding (C3 01, fingerprint, body). The fingerprint is the CRC-64-AVRO of
the schema's canonical form (Avro specification, "Single-object encoding"), from which a reader identifies the schema
without a server. With a registry (`use_registry`): Confluent's wire format (0, four bytes of schema id, body).

Records written with another version of the schema, released or registered, are resolved to the current version by
Avro's rules.
"""

import io
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol, TypeVar

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form
from pydantic import ValidationError

from tamiyo.schemas.avro_schema import avro_schema, released
from tamiyo.schemas.errors import DecodeError, RecordError
from tamiyo.schemas.kafka import MAX_READ_BYTES
from tamiyo.schemas.record import Record
from tamiyo.schemas.resolution import resolving_schema

R = TypeVar("R", bound=Record)

MARKER = b"\xc3\x01"
HEADER = len(MARKER) + 8
CONFLUENT_MARKER = b"\x00"
CONFLUENT_HEADER = len(CONFLUENT_MARKER) + 4


class SchemaIds(Protocol):
    """The schema ids of a registry; implemented by `tamiyo.schemas.client.subjects.Subjects`."""

    def header(self, record: type[Record]) -> bytes:
        """Return the bytes that an encoded `record` begins with."""

    def writer(self, record: type[Record], schema_id: int) -> Any | None:
        """Return the parsed schema of an id, or None if it is `record`'s own. Raises DecodeError for an unusable id."""


_registry: SchemaIds | None = None


def use_registry(registry: SchemaIds | None) -> None:
    """Select the framing for the whole process. Call it once, at the start: a process serves one installation.

    Args:
        registry: Source of the schema ids of Confluent's wire format; None selects single-object encoding.
    """
    global _registry
    _registry = registry


@cache
def parsed_schema(record: type[Record]) -> Any:
    """Return fastavro's parsed schema of `record`."""
    return fastavro.parse_schema(avro_schema(record))


def single_object_header(schema: Any) -> bytes:
    """Return the first ten bytes of a single-object encoded record of a schema: the marker and its fingerprint.

    Args:
        schema: An Avro schema as JSON values.
    """
    return MARKER + bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))


@cache
def header(record: type[Record]) -> bytes:
    """Return the first ten bytes of every single-object encoded `record`: the marker and the schema's fingerprint."""
    return single_object_header(avro_schema(record))


@cache
def _released_writers(record: type[Record]) -> dict[bytes, Any]:
    return {single_object_header(schema): fastavro.parse_schema(schema) for schema in released(record).values()}


def encode(record: Record) -> bytes:
    """Encode a record.

    Args:
        record: Any record of the catalogue.

    Returns:
        The framing and the Avro body.

    Raises:
        RegistryError: A registry is in use, and the record's schema is not registered there, or its id is not known yet
            and the registry is unavailable.

    Example:
        >>> from tamiyo.schemas.adaptation import ControlCommand
        >>> data = encode(ControlCommand(run_id="*", time_ms=0, paused=True))
        >>> data[:2].hex(), decode(data, ControlCommand).paused
        ('c301', True)
    """
    return body_begin(type(record)) + _body(record)


def body_begin(record: type[Record]) -> bytes:
    """Return the bytes before the Avro body of every encoded `record`. Raises RegistryError as `encode`."""
    return header(record) if _registry is None else _registry.header(record)


def current_body(data: bytes, record: type[Record]) -> bytes:
    """Return a record's Avro body as the current schema encodes it, whatever version and framing it has.

    Args:
        data: A message's value.
        record: The type that its topic carries.

    Raises:
        DecodeError: As `decode`.
        RecordError: As `decode`.
        RegistryError: As `decode`.
    """
    return data[HEADER:] if data.startswith(header(record)) else _body(decode(data, record))


def _body(record: Record) -> bytes:
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, parsed_schema(type(record)), record.model_dump())
    return buffer.getvalue()


def decode(data: bytes | None, record: type[R]) -> R:
    """Decode a record in either framing.

    Args:
        data: A message's value.
        record: The type that its topic carries.

    Raises:
        DecodeError: The bytes are missing, too many, of another schema, or not Avro.
        RecordError: The bytes are such a record, but its values break the contract.
        RegistryError: The bytes need a schema that is not known yet, and the registry is unavailable.

    Example:
        >>> from tamiyo.schemas.adaptation import ControlCommand
        >>> command = ControlCommand(run_id="run-1", time_ms=0, protected_layers=["fc"])
        >>> decode(encode(command), ControlCommand) == command
        True
    """
    return validate(_values(data, record, None), record)


def decode_fields(data: bytes | None, record: type[Record], names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return fields of a record by name, without making the record.

    The values have the types of the schema, but their ranges and lengths are not checked.

    Args:
        data: A message's value.
        record: The type that its topic carries.
        names: The fields to return; others are skipped, which pays where they are long lists of records. None: all.

    Raises:
        DecodeError: As `decode`.
        RegistryError: As `decode`.

    Example:
        >>> from tamiyo.schemas.adaptation import ControlCommand
        >>> command = ControlCommand(run_id="run-1", time_ms=5, protected_layers=["fc"])
        >>> decode_fields(encode(command), ControlCommand, ["time_ms"])
        {'time_ms': 5}
    """
    return dict(_values(data, record, None if names is None else partial_schema(record, tuple(names))))


@cache
def partial_schema(record: type[Record], names: tuple[str, ...]) -> Any:
    """Return fastavro's parsed schema of some fields of `record`."""
    schema = avro_schema(record)
    schema["fields"] = [field for field in schema["fields"] if field["name"] in names]
    return fastavro.parse_schema(schema)


def _values(data: bytes | None, record: type[Record], fields: Any | None) -> Any:
    """Return the values of a record, or of the fields of a schema."""
    if data is None:
        raise DecodeError(f"expected a {record.__name__}, but the message has no value")
    if len(data) > MAX_READ_BYTES:
        raise DecodeError(f"expected at most {MAX_READ_BYTES} bytes of a {record.__name__}, got {len(data)}")
    begin, writer = framing(data, record)
    buffer = io.BytesIO(data)
    buffer.seek(begin)
    try:
        if fields is not None:
            values = fastavro.schemaless_reader(buffer, writer or parsed_schema(record), fields)
        elif writer is None:
            values = fastavro.schemaless_reader(buffer, parsed_schema(record), None)
        else:
            values = fastavro.schemaless_reader(buffer, writer, resolving_schema(record, writer))
    except Exception as error:  # fastavro raises many types: EOFError, IndexError, ValueError, OverflowError, ...
        raise DecodeError(f"the bytes are not a {record.__name__}: {type(error).__name__}: {error}") from error
    if buffer.read(1):
        raise DecodeError(f"expected the end of the {record.__name__}, but more bytes follow")
    return values


def framing(data: bytes, record: type[Record]) -> tuple[int, Any | None]:
    """Return the start of the body and the schema it was written with, None for the record's own."""
    if data.startswith(header(record)):
        return HEADER, None
    if data.startswith(CONFLUENT_MARKER) and len(data) >= CONFLUENT_HEADER:
        schema_id = int.from_bytes(data[1:CONFLUENT_HEADER], "big")
        if _registry is None:
            raise DecodeError(
                f"expected a {record.__name__}, but the message refers to schema {schema_id} of a registry: "
                "set TAMIYO_REGISTRY_URL to read it"
            )
        return CONFLUENT_HEADER, _registry.writer(record, schema_id)
    older = _released_writers(record).get(data[:HEADER])
    if older is not None:
        return HEADER, older
    raise DecodeError(
        f"expected a {record.__name__} (bytes {header(record).hex()}), but the message begins {data[:HEADER].hex()}"
    )


def validate(values: Any, record: type[R]) -> R:
    """Make a record of raw values.

    Args:
        values: Field values by name.
        record: The type to make.

    Raises:
        RecordError: A value breaks the contract; the message names the first such field.
    """
    try:
        return record.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "record"
        raise RecordError(
            f"{record.__name__}.{place}: {first['msg']} ({error.error_count()} errors in total)"
        ) from error
