"""The tables that topics become: their names, their Arrow schemas, and how batches of messages become their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from tamiyo.data import _unpacking
from tamiyo.data._columns import TIME, Column, described, record_columns
from tamiyo.data._decoding import Decoded, known_time, layer_columns
from tamiyo.data._unpacking import HEADER_WITHOUT, Index, rows_in
from tamiyo.schemas.analysis import HealthSignals, HealthWindow
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import CATALOGUE, Topic
from tamiyo.streams.messages import Message

BATCH_ROWS = 20_000
"""Rows of a batch, and of a row group of Parquet: some megabytes, so that memory does not depend on the topic."""
BATCH_BYTES = 8 * 2**20
"""Encoded bytes of a batch, for topics with large records."""

RowsOf = Callable[[Sequence[dict[str, Any]]], tuple[Index, list[Any]]]

MESSAGE_FIELDS = (
    described("partition", pa.int32(), "Partition of the message.", nullable=False),
    described("offset", pa.int64(), "Offset of the message in its partition.", nullable=False),
    described(
        "timestamp", TIME, "Kafka's time of the message, UTC, to which --since and --until refer; null: after 2100."
    ),
    described("key", pa.string(), "Key of the message; null: it is the run_id."),
)


@dataclass(frozen=True)
class DataTable:
    """One table of a topic."""

    name: str
    """Of its file too, without the extension: the topic, with `.model` added for the second table of a topic."""
    topic: Topic
    rows: str
    """What a row is."""
    header: tuple[Column, ...]
    """Columns that each record has once."""
    schema: Any
    unpack: RowsOf | None
    """Returns the rows inside records; None: a record is one row."""

    def batch(self, messages: Sequence[Decoded]) -> Any:
        """Return the rows of messages as a RecordBatch of the schema."""
        values = [each.values for each in messages]
        arrays = [column.of(values) for column in self.header]
        about = message_arrays([each.message for each in messages], [each.get("run_id") for each in values])
        if self.unpack is None:
            return pa.RecordBatch.from_arrays([*arrays, *about], schema=self.schema)
        index, found = self.unpack(values)
        repeated = pa.array(index)
        whole = [*(each.take(repeated) for each in arrays), *found, *(each.take(repeated) for each in about)]
        return pa.RecordBatch.from_arrays(whole, schema=self.schema)


def message_arrays(messages: Sequence[Message], runs: Sequence[str | None]) -> list[Any]:
    """Return the arrays of `MESSAGE_FIELDS`.

    Args:
        messages: The messages.
        runs: The run_id of each one's record, None where records have none.
    """
    keys = [None if each.key is None else each.key.decode("utf-8", "backslashreplace") for each in messages]
    return [
        pa.array([each.partition for each in messages], pa.int32()),
        pa.array([each.offset for each in messages], pa.int64()),
        pa.array([each.timestamp_ms if known_time(each.timestamp_ms) else None for each in messages], TIME),
        pa.array([None if key == run else key for key, run in zip(keys, runs, strict=True)], pa.string()),
    ]


def batches(messages: Iterable[Decoded], record: type[Record]) -> Iterator[list[Decoded]]:
    """Yield messages in batches of about `BATCH_ROWS` rows, or fewer where records are large.

    Args:
        messages: Messages of one topic.
        record: The type of their records.
    """
    batch: list[Decoded] = []
    rows = size = 0
    columnar = record in HEADER_WITHOUT or bool(layer_columns(record))
    for each in messages:
        batch.append(each)
        rows += rows_in(record, each.values) if columnar else 1
        size += len(each.message.value or b"")
        if rows >= BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, rows, size = [], 0, 0
    if batch:
        yield batch


@cache
def tables_of(topic: Topic) -> tuple[DataTable, ...]:
    """Return the tables of a topic, the main one first."""
    record = topic.record
    if record is HealthSignals:
        return (
            _table(topic, "one layer and metric of a frame", _unpacking.SIGNAL_FIELDS, _unpacking.signal_rows),
            _table(
                topic, "one metric of the whole model in a frame", _unpacking.SIGNAL_MODEL_FIELDS,
                _unpacking.signal_model_rows, ".model",
            ),
        )  # fmt: skip
    if record is HealthWindow:
        return (
            _table(topic, "one layer and metric of a window", _unpacking.WINDOW_FIELDS, _unpacking.window_rows),
            _table(
                topic, "one metric of the whole model in a window", _unpacking.WINDOW_MODEL_FIELDS,
                _unpacking.window_model_rows, ".model",
            ),
        )  # fmt: skip
    if layer_columns(record):
        rows: RowsOf = lambda values: _unpacking.frame_rows(record, values)  # noqa: E731
        return (_table(topic, "one layer of a frame", _unpacking.frame_fields(record), rows),)
    return (_table(topic, "one record"),)


def _table(
    topic: Topic, rows: str, fields: Sequence[Any] = (), unpack: RowsOf | None = None, suffix: str = ""
) -> DataTable:
    left_out = {*HEADER_WITHOUT.get(topic.record, ()), *layer_columns(topic.record)}
    header = tuple(column for column in record_columns(topic.record, frozenset(left_out)))
    names = [*(column.field for column in header), *fields, *MESSAGE_FIELDS]
    description = topic.description if not suffix else f"{topic.description} The whole model's metrics."
    schema = pa.schema(names, metadata=provenance(topic.name, rows, description))
    return DataTable(f"{topic.name}{suffix}", topic, rows, header, schema, unpack)


def provenance(source: str, rows: str, description: str) -> dict[str, str]:
    """Return the metadata of a table's schema."""
    try:
        release = version("esper-tamiyo")
    except PackageNotFoundError:  # run from a checkout
        release = "unknown"
    return {"source": source, "rows": rows, "description": description, "tamiyo": release}


def all_tables() -> Mapping[str, DataTable]:
    """Return the tables of all topics by name, in the order of the catalogue."""
    return MappingProxyType({table.name: table for topic in CATALOGUE for table in tables_of(topic)})
