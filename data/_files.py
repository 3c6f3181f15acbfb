"""Files of an export: Parquet, CSV or JSON lines, written under another name until they are complete."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from tamiyo.schemas.errors import ExportError
from tamiyo.schemas.files import PARTIAL_SUFFIX


class Format(StrEnum):
    """Formats of files; the value is the extension too."""

    PARQUET = "parquet"
    CSV = "csv"
    JSONL = "jsonl"


class _Writer(Protocol):
    def write(self, batch: Any) -> None: ...

    def close(self) -> None: ...


class TableFile:
    """One table's file. It has its own name only once `finish` has been called."""

    def __init__(self, folder: Path, name: str, schema: Any, format: Format) -> None:
        """Begin the file.

        Args:
            folder: It exists.
            name: Name of the table.
            schema: The table's Arrow schema.
            format: Of the file.

        Raises:
            ExportError: The file cannot be written.
        """
        self.path = folder / f"{name}.{format}"
        self.rows = 0
        self._finished = False
        self._partial = self.path.with_name(self.path.name + PARTIAL_SUFFIX)
        with self._explained():
            self._file: Any = self._partial.open("wb")
            try:
                self._writer: _Writer = WRITERS[format](self._file, schema)
            except BaseException:
                self._close_and_remove()
                raise

    def write(self, batch: Any) -> None:
        """Append a RecordBatch of the schema.

        Raises:
            ExportError: The disk is full, or missing.
        """
        if batch.num_rows:
            with self._explained():
                self._writer.write(batch)
            self.rows += batch.num_rows

    def finish(self) -> None:
        """Complete the file and give it its name.

        Raises:
            ExportError: The disk is full, or missing.
        """
        with self._explained():
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())  # the name must not reach the disk before the content
            self._file.close()
            self._partial.replace(self.path)
        self._finished = True

    def discard(self) -> None:
        """Remove what is written, unless it is finished; never fails."""
        if self._finished:
            return
        with contextlib.suppress(OSError, ValueError, pa.ArrowException):
            self._writer.close()
        self._close_and_remove()

    def _close_and_remove(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ExportError(f"{self.path} cannot be written: {error.strerror or error}") from error


class _Parquet:
    def __init__(self, file: Any, schema: Any) -> None:
        self._writer = pq.ParquetWriter(file, schema, compression="zstd")

    def write(self, batch: Any) -> None:
        self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()


class _Csv:
    """Lists, maps and structs are JSON in one cell."""

    def __init__(self, file: Any, schema: Any) -> None:
        self._nested = {
            index: to_json(field.type) for index, field in enumerate(schema) if pa.types.is_nested(field.type)
        }
        for index in self._nested:
            schema = schema.set(index, schema.field(index).with_type(pa.string()))
        self._schema = schema
        self._writer = pacsv.CSVWriter(file, schema)

    def write(self, batch: Any) -> None:
        columns = [*batch.columns]
        for index, convert in self._nested.items():
            texts = [None if each is None else _dumps(convert(each)) for each in columns[index].to_pylist()]
            columns[index] = pa.array(texts, pa.string())
        self._writer.write(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _JsonLines:
    """One object a line. JSON has no NaN and no infinity: they are null."""

    def __init__(self, file: Any, schema: Any) -> None:
        self._file = file
        self._names = schema.names

    def write(self, batch: Any) -> None:
        columns = [_json_values(column) for column in batch.columns]
        rows = (dict(zip(self._names, row, strict=True)) for row in zip(*columns, strict=True))
        self._file.write("".join(f"{_dumps(row)}\n" for row in rows).encode())

    def close(self) -> None:
        pass


WRITERS: dict[Format, Callable[[Any, Any], _Writer]] = {
    Format.PARQUET: _Parquet,
    Format.CSV: _Csv,
    Format.JSONL: _JsonLines,
}


_dumps = json.JSONEncoder(allow_nan=False).encode


def _json_values(column: Any) -> list[Any]:
    """Return a column as JSON values; what Arrow can convert takes a fraction of the time."""
    if pa.types.is_timestamp(column.type):
        return [*pc.strftime(column, format="%Y-%m-%dT%H:%M:%SZ").to_pylist()]  # seconds with their milliseconds
    if pa.types.is_floating(column.type):
        return [*pc.if_else(pc.is_finite(column), column, None).to_pylist()]
    if not pa.types.is_nested(column.type):
        return [*column.to_pylist()]
    convert = to_json(column.type)
    return [None if each is None else convert(each) for each in column.to_pylist()]


def to_json(type: Any) -> Callable[[Any], Any]:
    """Return what makes a JSON value of a Python value of an Arrow type; values are not None.

    Args:
        type: One of those that columns have.
    """
    if pa.types.is_floating(type):
        return lambda value: value if math.isfinite(value) else None
    if pa.types.is_timestamp(type):
        return _time
    if pa.types.is_map(type):
        of_item = to_json(type.item_type)
        return lambda pairs: {key: None if item is None else of_item(item) for key, item in pairs}
    if pa.types.is_list(type):
        of_element = to_json(type.value_type)
        return lambda values: [None if each is None else of_element(each) for each in values]
    if pa.types.is_struct(type):
        fields = {type.field(index).name: to_json(type.field(index).type) for index in range(type.num_fields)}
        return lambda value: {
            name: None if value[name] is None else convert(value[name]) for name, convert in fields.items()
        }
    return lambda value: value


def _time(value: datetime) -> str:
    return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
