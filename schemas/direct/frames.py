"""Read the telemetry frames of layers into one matrix: they have one number a layer and metric.

A frame that keeps the contract gives the same numbers as `decode`, checked against the same bounds, which come from the
record's own fields. Any other frame is left to `decode`, whose error names what is wrong.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tamiyo.schemas.avro_schema import avro_schema
from tamiyo.schemas.codec import decode, framing
from tamiyo.schemas.columns import Floats
from tamiyo.schemas.direct.blocks import (
    FAILURES,
    Remembered,
    UnusualError,
    encode_long,
    read_doubles,
    read_id,
    read_ids,
    read_long,
    read_longs,
    read_nullable,
)
from tamiyo.schemas.errors import SchemaError
from tamiyo.schemas.kafka import MAX_READ_BYTES
from tamiyo.schemas.record import MAX_LAYERS, Record
from tamiyo.schemas.telemetry import OPTIONAL_HEALTH, Frame, KernelPerformance, LayerHealth

LARGEST_EXACT = 2**53  # beyond it, two counts may be one float64
MOST_COMPANIONS = 8
SCALARS = ("run_id", "step", "epoch", "time_ms", "companions", "final", "layer_id")
"""The fields before the columns."""


@dataclass(slots=True)
class LayerFrame:
    """A valid `KernelPerformance` or `LayerHealth`, its columns in one matrix; nothing changes it."""

    kind: type[Frame]
    run_id: str
    step: int
    epoch: int
    time_ms: int
    companions: list[str]
    final: bool
    layer_id: list[str]
    """The layer of each column of `values`; frames share it, so it must not be changed."""
    names: tuple[str, ...]
    """The record's columns, in its order; of the optional ones those that were measured."""
    values: Floats
    """[names, layers], NaN where not measured."""


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    kind: str
    """double or long."""
    nullable: bool
    optional: bool
    """Whether an empty column is one that was not measured."""


class FrameReader:
    """Reads frames of one kind."""

    def __init__(self, kind: type[Frame]) -> None:
        self._kind = kind
        self._remembered = Remembered()
        fields = avro_schema(kind)["fields"]
        if tuple(field["name"] for field in fields[: len(SCALARS)]) != SCALARS:
            raise TypeError(f"{kind.__name__} does not begin with {SCALARS}")
        self._columns = [_column(field) for field in fields[len(SCALARS) :]]
        self._required = sum(not column.optional for column in self._columns)
        contract = kind.model_json_schema()["properties"]
        self._most = scalar_limits(kind, ("step", "epoch", "time_ms"))
        limits = [_limits(contract[column.name]["items"]) for column in self._columns]
        self._low, self._high = np.array(limits).T

    def read(self, data: bytes, begin: int) -> LayerFrame:
        """Read a frame's Avro body, which begins at `begin`.

        Raises:
            UnusualError: It breaks the contract, or does not have the usual form.
        """
        run_id, end = read_id(data, begin)
        step, end = read_long(data, end)
        epoch, end = read_long(data, end)
        time_ms, end = read_long(data, end)
        most = self._most
        if step > most["step"] or epoch > most["epoch"] or time_ms > most["time_ms"]:
            raise UnusualError("a large number")
        companions, end = read_ids(data, end, "companions", self._remembered)
        final = data[end]
        layers, end = read_ids(data, end + 1, "layer_id", self._remembered)
        if len(companions) > MOST_COMPANIONS or final > 1 or not 0 < len(layers) <= MAX_LAYERS:
            raise UnusualError("values beyond the contract")
        names, values, end = self._matrix(data, end, len(layers))
        if end != len(data):
            raise UnusualError("more bytes")
        return LayerFrame(self._kind, run_id, step, epoch, time_ms, companions, bool(final), layers, names, values)

    def _matrix(self, data: bytes, end: int, layers: int) -> tuple[tuple[str, ...], Floats, int]:
        """Return the names of the columns, [names, layers], and where the last one ends."""
        values = np.empty((len(self._columns), layers))
        prefix = encode_long(layers)
        rows: list[int] = []
        null: list[tuple[int, Any]] = []
        for number, column in enumerate(self._columns):
            if column.optional and data[end] == 0:
                end += 1
                continue
            row = values[len(rows)]
            if known := self._remembered.find(column.name, data, end):
                (row[:], missing), end = known
            else:
                begin = end
                missing, end = self._read(column, data, begin, prefix, row)
                if column.kind == "long" or (missing is not None and len(missing) == layers):
                    self._remembered.add(column.name, data[begin:end], (row.copy(), missing))
            if missing is not None:
                null.append((len(rows), missing))
            rows.append(number)
        values = values[: len(rows)]
        low, high = np.minimum.reduce(values, axis=1), np.maximum.reduce(values, axis=1)
        if not ((low >= self._low[rows]) & (high <= self._high[rows])).all():  # NaN compares as False
            raise UnusualError("a value beyond the contract")
        for place, missing in null:
            values[place, missing] = np.nan
        return *self._measured(rows, values), end

    def _measured(self, rows: list[int], values: Floats) -> tuple[tuple[str, ...], Floats]:
        """Return names and values without the optional columns in which nothing was measured."""
        columns = [self._columns[number] for number in rows]
        if len(rows) > self._required:
            kept = [place for place, column in enumerate(columns) if not column.optional or _any(values[place])]
            if len(kept) < len(columns):
                values, columns = values[kept], [columns[place] for place in kept]
        return tuple([column.name for column in columns]), values

    @staticmethod
    def _read(
        column: _Column, data: bytes, begin: int, prefix: bytes, row: Floats
    ) -> tuple[npt.NDArray[np.intp] | None, int]:
        """Read a column into `row`, 0 where it is null; return the nulls' places, None without any, and its end."""
        if not data.startswith(prefix, begin):
            raise UnusualError("another number of entries than layers")
        begin += len(prefix)
        if column.nullable:
            null, end = read_nullable(data, begin, len(row), column.kind, row)
            return (np.array(null, dtype=np.intp) if null else None), end
        if column.kind == "double":
            return None, read_doubles(data, begin, len(row), row)
        row[:], end = read_longs(data, begin, len(row))
        return None, end


def decode_frame(data: bytes | None, kind: type[Frame]) -> Frame | LayerFrame:
    """Decode a telemetry record, a layers' frame into a matrix where it can be read directly.

    Args:
        data: A message's value.
        kind: The type that its topic carries.

    Raises:
        DecodeError: As `decode`.
        RecordError: As `decode`.
        RegistryError: As `decode`.
    """
    if kind in READ and data is not None and len(data) <= MAX_READ_BYTES:
        try:
            begin, writer = framing(data, kind)
            if writer is None:
                return _reader(kind).read(data, begin)
        except (*FAILURES, SchemaError):
            pass  # `decode` has the last word
    return decode(data, kind)


READ = frozenset((KernelPerformance, LayerHealth))


@cache
def _reader(kind: type[Frame]) -> FrameReader:
    return FrameReader(kind)


def _column(field: Any) -> _Column:
    items = field["type"]["items"]
    nullable = isinstance(items, list)
    return _Column(field["name"], items[1] if nullable else items, nullable, field["name"] in OPTIONAL_HEALTH)


def scalar_limits(record: type[Record], names: Sequence[str]) -> dict[str, int]:
    """Return the largest value of each of some fields, as the record's contract has it."""
    contract = record.model_json_schema()["properties"]
    return {name: int(contract[name]["maximum"]) for name in names}


def _limits(contract: Any) -> tuple[float, float]:
    """Return the lowest and highest value of a column, of its JSON schema."""
    kind = contract["anyOf"][0] if "anyOf" in contract else contract
    largest = LARGEST_EXACT if kind["type"] == "integer" else sys.float_info.max
    return kind.get("minimum", -sys.float_info.max), min(kind.get("maximum", largest), largest)


def _any(row: Floats) -> bool:
    return not np.isnan(row).all()
