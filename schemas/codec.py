"""Records to bytes and back: Avro single-object encoding (C3 01, fingerprint, body).

The fingerprint is CRC-64-AVRO of the schema's canonical form (Avro specification, "Single-object encoding"), so a
reader knows what it holds without a server.
"""

import io
from functools import cache
from typing import Any, TypeVar

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form
from pydantic import ValidationError

from tamiyo.schemas.avro_schema import avro_schema
from tamiyo.schemas.errors import DecodeError, RecordError
from tamiyo.schemas.record import Record

R = TypeVar("R", bound=Record)

MAX_BYTES = 4 * 1024 * 1024  # four times a broker's default limit: anything larger is not ours
MARKER = b"\xc3\x01"
HEADER = len(MARKER) + 8


@cache
def parsed_schema(record: type[Record]) -> Any:
    """Return fastavro's parsed schema of `record`."""
    return fastavro.parse_schema(avro_schema(record))


@cache
def header(record: type[Record]) -> bytes:
    """Return the ten bytes that every encoded `record` begins with."""
    canonical = to_parsing_canonical_form(avro_schema(record))
    return MARKER + bytes.fromhex(fingerprint(canonical, "CRC-64-AVRO"))


def encode(record: Record) -> bytes:
    """Encode a record."""
    buffer = io.BytesIO()
    buffer.write(header(type(record)))
    fastavro.schemaless_writer(buffer, parsed_schema(type(record)), record.model_dump())
    return buffer.getvalue()


def decode(data: bytes | None, record: type[R]) -> R:
    """Decode bytes that should hold a `record`.

    Raises:
        DecodeError: the bytes are missing, too many, of another schema, or not Avro.
        RecordError: they are the record, but its values break its contract.
    """
    if data is None:
        raise DecodeError(f"expected a {record.__name__}, but the message has no value")
    if len(data) > MAX_BYTES:
        raise DecodeError(f"{len(data)} bytes are more than the {MAX_BYTES} a {record.__name__} may have")
    expected = header(record)
    if data[:HEADER] != expected:
        raise DecodeError(
            f"expected a {record.__name__} (bytes {expected.hex()}), but the message begins {data[:HEADER].hex()}"
        )
    buffer = io.BytesIO(data)
    buffer.seek(HEADER)
    try:
        values = fastavro.schemaless_reader(buffer, parsed_schema(record), None)
    except Exception as error:  # fastavro raises whatever its C code meets: EOF, Index, Value, Overflow, Unicode...
        raise DecodeError(f"the bytes are not a {record.__name__}: {type(error).__name__}: {error}") from error
    if buffer.read(1):
        raise DecodeError(f"bytes are left over after the {record.__name__}")
    return validate(values, record)


def validate(values: Any, record: type[R]) -> R:
    """Make a record of raw values; raises RecordError naming the field that is wrong."""
    try:
        return record.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "record"
        raise RecordError(f"{record.__name__}.{place}: {first['msg']} ({error.error_count()} in all)") from error
