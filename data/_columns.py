"""The Arrow columns of a record: their types, derived from its Avro schema, and their arrays, made of decoded values.

A column's type depends on the record's class alone, never on the data, so files of one topic always fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from tamiyo.schemas.avro_schema import avro_schema
from tamiyo.schemas.record import Record

TIME = pa.timestamp("ms", tz="UTC")
PRIMITIVES = {"boolean": pa.bool_(), "long": pa.int64(), "double": pa.float64(), "string": pa.string()}
TIME_FIELD = "time_ms"
"""The field of every record's own time; its column is `time`."""
TIME_MAPS = ("orders",)
"""Maps whose values are times."""
ONE_AXIS = ("probabilities", "global_features")
"""Tensors of one axis by their description: their length is their shape."""
TENSOR = "tamiyo.Tensor"

Arrays = Callable[[Sequence[Any]], Any]
"""Makes an Arrow array of values of Avro."""


@dataclass(frozen=True, slots=True)
class Column:
    """One Arrow column, made of one field of a record."""

    name: str
    source: str
    """The record's field."""
    type: Any
    array: Arrays
    nullable: bool = False
    description: str = ""

    @property
    def field(self) -> Any:
        """Return the Arrow field, with the description as its metadata."""
        return described(self.name, self.type, self.description, nullable=self.nullable)

    def of(self, records: Sequence[dict[str, Any]]) -> Any:
        """Return the column's array, one entry for each record."""
        return self.array([record[self.source] for record in records])


def described(name: str, type: Any, description: str, *, nullable: bool = True) -> Any:
    """Return an Arrow field with a description, which pyarrow reads back as `field.metadata[b"description"]`."""
    return pa.field(name, type, nullable=nullable, metadata={"description": description} if description else None)


@cache
def record_columns(record: type[Record], without: frozenset[str] = frozenset()) -> tuple[Column, ...]:
    """Return the columns of a record, in the order of its fields.

    Args:
        record: Any record of the catalogue.
        without: Fields that are left out; those that are `Columns` must be.

    Example:
        >>> from tamiyo.schemas.adaptation import ControlCommand
        >>> [(each.name, str(each.type)) for each in record_columns(ControlCommand)][:3]
        [('run_id', 'string'), ('time', 'timestamp[ms, tz=UTC]'), ('paused', 'bool')]
    """
    schema = avro_schema(record)
    return _columns({**schema, "fields": [each for each in schema["fields"] if each["name"] not in without]}, {})


def _columns(schema: dict[str, Any], known: dict[str, Any]) -> tuple[Column, ...]:
    known[f"{schema['namespace']}.{schema['name']}"] = schema
    return tuple(column for field in schema["fields"] for column in _field_columns(field, known))


def _field_columns(field: dict[str, Any], known: dict[str, Any]) -> list[Column]:
    name, kind, description = field["name"], field["type"], field.get("doc", "")
    nullable = isinstance(kind, list)
    if nullable:
        (kind,) = [each for each in kind if each != "null"]
    if _full_name(kind, known) == TENSOR:
        return _tensor_columns(name, description)
    if name == TIME_FIELD:
        return [Column("time", name, TIME, _plain(TIME), nullable, description.replace("ms since the epoch, ", ""))]
    if name in TIME_MAPS:
        return [Column(name, name, *_map(TIME), nullable, description)]
    return [Column(name, name, *_converter(kind, known), nullable, description)]


def _full_name(kind: Any, known: dict[str, Any]) -> str | None:
    """Return the full name of a record's type, which its first use defines; remember such a definition."""
    if isinstance(kind, dict) and kind["type"] == "record":
        name = f"{kind['namespace']}.{kind['name']}"
        known[name] = kind
        return name
    return kind if isinstance(kind, str) else None


def _converter(kind: Any, known: dict[str, Any]) -> tuple[Any, Arrays]:
    """Return the Arrow type of an Avro type, and how its arrays are made."""
    if isinstance(kind, list):
        (inner,) = [each for each in kind if each != "null"]
        return _converter(inner, known)
    if kind == "bytes":
        return _masks()
    if isinstance(kind, str) and kind in PRIMITIVES:
        return PRIMITIVES[kind], _plain(PRIMITIVES[kind])
    if isinstance(kind, str):
        return _struct(_columns(known[kind], known))
    if kind["type"] == "array":
        return _list(*_converter(kind["items"], known), nullable=isinstance(kind["items"], list))
    if kind["type"] == "map":
        return _map(_converter(kind["values"], known)[0])
    if kind["type"] == "enum":
        return pa.string(), _plain(pa.string())
    return _struct(_columns(kind, known))


def _plain(type: Any) -> Arrays:
    return lambda values: pa.array(values, type)


def _map(type: Any) -> tuple[Any, Arrays]:
    whole = pa.map_(pa.string(), type)
    return whole, lambda values: pa.array([[*each.items()] for each in values], whole)


def _list(item: Any, item_array: Arrays, *, nullable: bool) -> tuple[Any, Arrays]:
    whole = pa.list_(pa.field("element", item, nullable=nullable))

    def array(values: Sequence[Any]) -> Any:
        return pa.ListArray.from_arrays(_offsets(values), item_array([*chain.from_iterable(values)]), type=whole)

    return whole, array


def _struct(columns: tuple[Column, ...]) -> tuple[Any, Arrays]:
    fields = [column.field for column in columns]
    return pa.struct(fields), lambda values: pa.StructArray.from_arrays([e.of(values) for e in columns], fields=fields)


def _masks() -> tuple[Any, Arrays]:
    """A mask has one byte per action; every byte but 0 is legal, as for the learner."""
    whole = pa.list_(pa.field("element", pa.bool_(), nullable=False))

    def array(values: Sequence[bytes]) -> Any:
        legal = np.frombuffer(b"".join(values), np.uint8).astype(np.bool_)
        return pa.ListArray.from_arrays(_offsets(values), pa.array(legal), type=whole)

    return whole, array


def _tensor_columns(name: str, description: str) -> list[Column]:
    """A tensor is a list of its values, row-major; its shape is a column of its own where it has several axes."""
    whole = pa.list_(pa.field("element", pa.float32(), nullable=False))

    def array(values: Sequence[dict[str, Any]]) -> Any:
        data = [each["data"] for each in values]
        numbers = np.frombuffer(b"".join(data), "<f4")
        return pa.ListArray.from_arrays(_offsets(data, 4), pa.array(numbers, pa.float32()), type=whole)

    columns = [Column(name, name, whole, array, description=description)]
    if name not in ONE_AXIS:
        shapes, shape_array = _list(pa.int64(), _plain(pa.int64()), nullable=False)
        extents = f"Extent of each axis of {name}, whose values are row-major."
        shaped: Arrays = lambda values: shape_array([each["shape"] for each in values])  # noqa: E731
        columns.append(Column(f"{name}_shape", name, shapes, shaped, description=extents))
    return columns


def _offsets(values: Sequence[Any], size: int = 1) -> Any:
    """Return the offsets of lists that follow each other, each `size` times as long as its entry of values."""
    ends = np.zeros(len(values) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, values), np.int64, len(values)), out=ends[1:])
    return pa.array((ends // size).astype(np.int32))
