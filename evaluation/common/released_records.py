"""Records as programs of the last release write them."""

import io
from functools import cache
from typing import Any

import fastavro

from tamiyo.schemas.avro_schema import released
from tamiyo.schemas.codec import single_object_header
from tamiyo.schemas.columns import ColumnarRecord
from tamiyo.schemas.record import Record


def encode_released(record: Record, version: str | None = None) -> bytes:
    """Encode a record with a released schema, lists in place of columns.

    Args:
        record: A record that the release has.
        version: The release; the last one by default.
    """
    framing, schema = _schema(type(record), version)
    buffer = io.BytesIO(framing)
    buffer.seek(len(framing))
    lists = record.lists() if isinstance(record, ColumnarRecord) else {}
    fastavro.schemaless_writer(buffer, schema, {**record.model_dump(), **lists})
    return buffer.getvalue()


@cache
def _schema(record: type[Record], version: str | None) -> tuple[bytes, Any]:
    known = released(record)
    schema = known[version or max(known, key=lambda name: [int(part) for part in name.split(".")])]
    return single_object_header(schema), fastavro.parse_schema(schema)
