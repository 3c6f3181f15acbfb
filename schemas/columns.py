"""Columns of measured values: the names once, then one matrix as bytes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from tamiyo.schemas.record import MAX_ELEMENTS, Counts, NonNegatives, Ratios, Record, Sparse

Floats = npt.NDArray[np.float64]
Name = Annotated[str, Field(max_length=200)]
MAX_NAMES = 1_000
LARGEST_SINGLE, SMALLEST_SINGLE = float(np.finfo(np.float32).max), float(np.finfo(np.float32).smallest_normal)
LOST_BITS = 2**29 - 1
"""The bits of a float64 that a float32 does not have."""
DTYPES: dict[int, np.dtype[Any]] = {4: np.dtype("<f4"), 8: np.dtype("<f8")}


class Columns(Record):
    """Named columns of numbers in one matrix, NaN where nothing was measured.

    The record around them determines how many values a column has. They are stored as float32 if that changes no value,
    else as float64.

    Example:
        >>> columns = Columns.of(["health", "alpha"], [[0.5, 1.0, None], [0.0, 0.0, 0.25]])
        >>> columns.width, columns.matrix(3).tolist()
        (4, [[0.5, 1.0, nan], [0.0, 0.0, 0.25]])
    """

    names: Annotated[list[Name], Field(max_length=MAX_NAMES, description="Name of each column.")] = []
    width: Annotated[int, Field(ge=4, le=8, multiple_of=4, description="Bytes per value: 4 or 8.")] = 4
    values: Annotated[
        bytes, Field(description="Little-endian IEEE 754 numbers, one column after the other; NaN: not measured.")
    ] = b""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.names)) != len(self.names):
            raise ValueError("two columns have one name")
        if len(self.values) > self.width * MAX_ELEMENTS:
            raise ValueError(f"expected at most {MAX_ELEMENTS} values, got {len(self.values) // self.width}")
        return self

    @classmethod
    def of(cls, names: Iterable[str], matrix: npt.ArrayLike) -> Self:
        """Return columns of any values that numpy can convert to float64.

        Args:
            names: Name of each column.
            matrix: [names, ...]; None and NaN mean "not measured".
        """
        return cls(names=list(names), **_stored(matrix))

    @classmethod
    def of_distinct(cls, names: Sequence[str], matrix: npt.ArrayLike) -> Self:
        """Return what `of` does, for names that are known to be valid and distinct, and few enough values."""
        return cls.of_checked(names=list(names), **_stored(matrix))

    def matrix(self, *shape: int) -> Floats:
        """Return the values as float64, [names, *shape], read-only if they are stored as such.

        Args:
            shape: Extent of one column's values.

        Raises:
            ValueError: There are more or fewer values.
        """
        expected = self.width * len(self.names) * math.prod(shape)
        if len(self.values) != expected:
            raise ValueError(
                f"expected {expected} bytes for {len(self.names)} columns of {list(shape)}, got {len(self.values)}"
            )
        found = np.frombuffer(self.values, DTYPES[self.width]).reshape(len(self.names), *shape)
        values: Floats = found.astype(np.float64, copy=False)
        return values


class ColumnarRecord(Record):
    """A record that keeps arrays made of its columns; only its fields count when it is compared."""

    def __eq__(self, other: object) -> bool:
        fields = type(self).model_fields
        return type(self) is type(other) and all(getattr(self, name) == getattr(other, name) for name in fields)

    __hash__ = None  # type: ignore[assignment]

    def lists(self) -> dict[str, Any]:
        """Return lists instead of columns: `released_fields` with their values, None where nothing was measured."""
        raise NotImplementedError


def entries(column: Floats) -> list[float | None]:
    """Return a column as a list.

    Args:
        column: One value per layer; NaN: not measured.

    Returns:
        The values, None where nothing was measured.
    """
    return [None if value != value else value for value in column.tolist()]


def _stored(matrix: npt.ArrayLike) -> dict[str, Any]:
    """Return width and values of a matrix: float32 if that changes no value, else float64."""
    exact = np.ascontiguousarray(matrix, dtype=DTYPES[8])
    # A float64 whose last 29 bits are 0 and whose magnitude is in range is a float32.
    if not np.bitwise_or.reduce(exact.view("<u8"), axis=None) & LOST_BITS and _in_range(exact):
        return {"width": 4, "values": exact.astype(DTYPES[4]).tobytes()}
    return {"width": 8, "values": exact.tobytes()}


def _in_range(values: Floats) -> bool:
    """Return whether the exponent of every value is one of float32."""
    magnitudes = np.abs(values)
    if np.fmax.reduce(magnitudes, axis=None, initial=0.0) > LARGEST_SINGLE:
        return False
    return not ((magnitudes < SMALLEST_SINGLE) & (magnitudes > 0)).any()


# Release 0.1.0 wrote lists of nullable numbers, and a person may write them by hand: checked as strictly as then.


class _Statistics(BaseModel):
    """LayerStats in release 0.1.0."""

    model_config = ConfigDict(extra="forbid")

    count: Counts
    mean: Sparse
    variance: Sparse
    minimum: Sparse
    maximum: Sparse
    last: Sparse
    slope: Sparse


_METRICS = TypeAdapter(dict[str, Sparse])
_PRIORITY = TypeAdapter(NonNegatives)
_SURVIVAL = TypeAdapter(Ratios)
_WINDOW_METRICS = TypeAdapter(dict[str, _Statistics])


def signals_from_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a HealthSignals with `columns` and `sampling` instead of its lists.

    Args:
        values: Its fields, with `metrics`, `priority` and `survival`.

    Raises:
        ValueError: A list breaks the contract.
    """
    layers = _layers(values)
    metrics = _METRICS.validate_python(values.get("metrics", {}))
    sampling = {
        "priority": _PRIORITY.validate_python(values.get("priority", [])),
        "survival": _SURVIVAL.validate_python(values.get("survival", [])),
    }
    for name, column in metrics.items():
        _require(f"metric {name}", column, layers)
    for name, chances in sampling.items():
        _require(f"column {name}", chances, layers)
    replaced = {"columns": _columns(metrics, layers), "sampling": _columns(sampling, layers)}
    return {**_without(values, "metrics", "priority", "survival"), **replaced}


def window_from_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a HealthWindow with `columns` instead of its lists.

    Args:
        values: Its fields, with `metrics`.

    Raises:
        ValueError: A list breaks the contract.
    """
    layers = _layers(values)
    metrics = _WINDOW_METRICS.validate_python(values["metrics"])
    blocks = []
    for name, stats in metrics.items():
        for statistic, column in stats:
            _require(f"{statistic} of metric {name}", column, layers)
        blocks.append([column for _, column in stats])
    cube = np.array(blocks, dtype=np.float64).reshape(len(blocks), len(_Statistics.model_fields), layers)
    return {**_without(values, "metrics"), "columns": Columns.of(metrics, cube)}


def _layers(values: Mapping[str, Any]) -> int:
    layers = values.get("layer_id")
    return len(layers) if isinstance(layers, list) else 0


def _require(what: str, column: Sequence[Any], layers: int) -> None:
    if len(column) != layers:
        raise ValueError(f"{what} has {len(column)} entries for {layers} layers")


def _columns(columns: Mapping[str, Sequence[Any]], layers: int) -> Columns:
    return Columns.of(columns, np.array([*columns.values()], dtype=np.float64).reshape(len(columns), layers))


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
