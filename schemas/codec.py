"""Records to bytes and back, in the two framings that a reader takes, whichever a writer chose.

Without a schema registry: Avro single-object encoding (C3 01, fingerprint, body). The fingerprint is CRC-64-AVRO of the
schema's canonical form (Avro specification, "Single-object encoding"), so a reader needs no server to know what it
holds. With one (`use_registry`): Confluent's wire format (0, four bytes of schema id, body).

What was written with another version of the schema, released or registered, is resolved to the current one by Avro's
rules.
"""

import io
from functools import cache
from typing import Any, Protocol, TypeVar

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form
from pydantic import ValidationError

from tamiyo.schemas.avro_schema import avro_schema
from tamiyo.schemas.errors import DecodeError, RecordError
from tamiyo.schemas.record import Record
from tamiyo.schemas.released import released

R = TypeVar("R", bound=Record)

MAX_BYTES = 4 * 1024 * 1024  # four times a broker's default limit: anything larger is not ours
MARKER = b"\xc3\x01"
HEADER = len(MARKER) + 8
CONFLUENT_MARKER = b"\x00"
CONFLUENT_HEADER = len(CONFLUENT_MARKER) + 4


class SchemaIds(Protocol):
    """A schema registry, as far as bytes are concerned: `tamiyo.schemas.subjects.Subjects`."""

    def header(self, record: type[Record]) -> bytes:
        """Return the bytes that an encoded `record` begins with."""

    def writer(self, record: type[Record], schema_id: int) -> Any | None:
        """Return the parsed schema under an id, None where it is `record`'s own; raises DecodeError."""


_registry: SchemaIds | None = None


def use_registry(registry: SchemaIds | None) -> None:
    """Write Confluent's wire format with this registry's ids from now on; None: single-object encoding.

    For the whole process, like its log: said once where it starts, since one process serves one installation.
    """
    global _registry
    _registry = registry


@cache
def parsed_schema(record: type[Record]) -> Any:
    """Return fastavro's parsed schema of `record`."""
    return fastavro.parse_schema(avro_schema(record))


def _single_object(schema: Any) -> bytes:
    return MARKER + bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))


@cache
def header(record: type[Record]) -> bytes:
    """Return the ten bytes that every single-object encoded `record` begins with."""
    return _single_object(avro_schema(record))


@cache
def _released_writers(record: type[Record]) -> dict[bytes, Any]:
    return {_single_object(schema): fastavro.parse_schema(schema) for schema in released(record).values()}


def encode(record: Record) -> bytes:
    """Encode a record.

    Raises RegistryError where a registry is used and the record's id could not be had: it does not answer and was never
    asked before, or the schema is not registered.
    """
    kind = type(record)
    buffer = io.BytesIO()
    buffer.write(header(kind) if _registry is None else _registry.header(kind))
    fastavro.schemaless_writer(buffer, parsed_schema(kind), record.model_dump())
    return buffer.getvalue()


def decode(data: bytes | None, record: type[R]) -> R:
    """Decode bytes that should hold a `record`, in either framing.

    Raises:
        DecodeError: the bytes are missing, too many, of another schema, or not Avro.
        RecordError: they are the record, but its values break its contract.
        RegistryError: they need a schema that was not seen before, and the registry does not answer.
    """
    if data is None:
        raise DecodeError(f"expected a {record.__name__}, but the message has no value")
    if len(data) > MAX_BYTES:
        raise DecodeError(f"{len(data)} bytes are more than the {MAX_BYTES} a {record.__name__} may have")
    begin, writer = _framing(data, record)
    buffer = io.BytesIO(data)
    buffer.seek(begin)
    own = parsed_schema(record)
    try:
        values = fastavro.schemaless_reader(buffer, own if writer is None else writer, None if writer is None else own)
    except Exception as error:  # fastavro raises whatever its C code meets: EOF, Index, Value, Overflow, Unicode...
        raise DecodeError(f"the bytes are not a {record.__name__}: {type(error).__name__}: {error}") from error
    if buffer.read(1):
        raise DecodeError(f"bytes are left over after the {record.__name__}")
    return validate(values, record)


def _framing(data: bytes, record: type[Record]) -> tuple[int, Any | None]:
    """Return where the body begins, and the schema it was written with, None for the record's own."""
    if data.startswith(header(record)):
        return HEADER, None
    if data.startswith(CONFLUENT_MARKER) and len(data) >= CONFLUENT_HEADER:
        schema_id = int.from_bytes(data[1:CONFLUENT_HEADER], "big")
        if _registry is None:
            raise DecodeError(
                f"expected a {record.__name__}, and the message was written with a registry's schema {schema_id}: "
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
    """Make a record of raw values; raises RecordError naming the field that is wrong."""
    try:
        return record.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "record"
        raise RecordError(f"{record.__name__}.{place}: {first['msg']} ({error.error_count()} in all)") from error
