"""Unpacks columnar records: one row for each layer, or for each layer and metric.

A record without layers still has one row, in which the layer's columns are null, as `explode` of polars and pandas
makes of an empty list: no message is missing from its table.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tamiyo.data._columns import described, record_columns
from tamiyo.data._decoding import layer_columns
from tamiyo.schemas.analysis import SAMPLING, STATISTICS, HealthSignals, HealthWindow, ModelStats
from tamiyo.schemas.columns import DTYPES
from tamiyo.schemas.record import Record

Values = Sequence[dict[str, Any]]
Index = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
LARGEST_COUNT = 2.0**62

LAYER = described("layer_id", pa.string(), "The layer; null: the record has no layers.")
METRIC = described("metric", pa.string(), "Name of the measurement; null: the record has none of its layers.")
VALUE = described("value", pa.float64(), "The layer's value; null: not measured.")
SAMPLING_FIELDS = (
    described("priority", pa.float64(), "Anomaly of the layer's signal, >= 0; 0 is ordinary."),
    described("survival", pa.float64(), "Probability with which the layer's signal was kept."),
)
COUNT = described("count", pa.int64(), "Number of values in the window; 0 where the layer has none.")
SLOPE = "slope"
MODEL_METRIC = described("metric", pa.string(), "Name of the model's measurement.", nullable=False)
MODEL_VALUE = described("value", pa.float64(), "The model's value.", nullable=False)


def frame_rows(record: type[Record], values: Values) -> tuple[Index, list[Any]]:
    """Return one row for each layer of frames with columns.

    Args:
        record: KernelPerformance or LayerHealth.
        values: Decoded frames.

    Returns:
        For each row the position of its frame, and the arrays of `frame_fields`.
    """
    index = np.repeat(np.arange(len(values)), [max(1, len(each["layer_id"])) for each in values])
    missing: list[Any] = [None]  # the row of a frame without layers
    return index, [
        pa.array([*chain.from_iterable(each[field.name] or missing for each in values)], field.type)
        for field in frame_fields(record)
    ]


@cache
def frame_fields(record: type[Record]) -> tuple[Any, ...]:
    """Return the Arrow fields of a frame's columns, one value a layer."""
    columns = {column.name: column for column in record_columns(record)}
    return tuple(
        described(name, columns[name].type.value_type, columns[name].description) for name in layer_columns(record)
    )


def signal_rows(values: Values) -> tuple[Index, list[Any]]:
    """Return one row for each layer and metric of signals, as `frame_rows`; the arrays are those of `SIGNAL_FIELDS`."""
    index, by_layer, layers, metrics = _layers_and_metrics(values)
    numbers = [_matrix(each, "columns", (len(each["layer_id"]),)).T for each in values]
    chances = [_matrix(each, "sampling", (len(each["layer_id"]),)).T for each in values]
    sampling = _stacked(chances, len(SAMPLING))[by_layer]
    return index, [layers, metrics, _nullable(_stacked(numbers, 1)[:, 0]), *map(_nullable, sampling.T)]


SIGNAL_FIELDS = (LAYER, METRIC, VALUE, *SAMPLING_FIELDS)


def window_rows(values: Values) -> tuple[Index, list[Any]]:
    """Return one row for each layer and metric of windows, as `frame_rows`; the arrays are those of `WINDOW_FIELDS`."""
    index, _, layers, metrics = _layers_and_metrics(values)
    cubes = [_matrix(each, "columns", (len(STATISTICS), len(each["layer_id"]))).transpose(2, 0, 1) for each in values]
    statistics = _stacked(cubes, len(STATISTICS))
    count, others = statistics[:, 0], statistics[:, 1:]
    counted = np.isfinite(count) & (np.abs(count) <= LARGEST_COUNT)
    counts = pa.array(np.where(counted, count, 0.0).astype(np.int64), mask=~counted)
    return index, [layers, metrics, counts, *map(_nullable, others.T)]


def _statistic(name: str) -> Any:
    if name == "count":
        return COUNT
    what = ModelStats.model_fields[name].description or ""
    return described(name, pa.float64(), what if name == SLOPE else f"{what[:-1]}; null: not measured.")


WINDOW_FIELDS = (LAYER, METRIC, *map(_statistic, STATISTICS))


def signal_model_rows(values: Values) -> tuple[Index, list[Any]]:
    """Return one row for each metric of the model, as `frame_rows`; the arrays are those of `SIGNAL_MODEL_FIELDS`."""
    index, metrics, found = _model_metrics(values)
    return index, [metrics, pa.array(found, pa.float64())]


SIGNAL_MODEL_FIELDS = (MODEL_METRIC, MODEL_VALUE)


def window_model_rows(values: Values) -> tuple[Index, list[Any]]:
    """Return one row for each metric of the model, as `frame_rows`; the arrays are those of `WINDOW_MODEL_FIELDS`."""
    index, metrics, found = _model_metrics(values)
    return index, [metrics, *(column.of(found) for column in record_columns(ModelStats))]


WINDOW_MODEL_FIELDS = (MODEL_METRIC, *(column.field for column in record_columns(ModelStats)))

HEADER_WITHOUT = {
    HealthSignals: ("layer_id", "columns", "sampling", "model_metrics"),
    HealthWindow: ("layer_id", "columns", "model_metrics"),
}
"""Fields of columnar records that become rows."""


def rows_in(record: type[Record], values: dict[str, Any]) -> int:
    """Return how many rows a record's values become in the largest of its tables."""
    if record in HEADER_WITHOUT:
        rows = max(1, len(values["layer_id"])) * max(1, len(values["columns"]["names"]))
        return max(rows, len(values["model_metrics"]))
    return max(1, len(values["layer_id"])) if layer_columns(record) else 1


def _layers_and_metrics(values: Values) -> tuple[Index, Index, Any, Any]:
    """Return for each row the positions of its record and of its layer among all, and the arrays of both names.

    Rows are in the order of the layers, each with the metrics in their order. A record without layers has one row, and
    a layer without metrics too.
    """
    names = [each["columns"]["names"] for each in values]
    layers = np.array([max(1, len(each["layer_id"])) for each in values], np.int64)
    metrics = np.array([max(1, len(each)) if one["layer_id"] else 1 for each, one in zip(names, values, strict=True)])
    record_of_layer = np.repeat(np.arange(len(values)), layers)
    metrics_of_layer = metrics[record_of_layer]
    by_layer = np.repeat(np.arange(len(record_of_layer)), metrics_of_layer)
    first_row = np.cumsum(metrics_of_layer) - metrics_of_layer
    first_metric = np.cumsum(metrics) - metrics
    place = np.arange(len(by_layer)) - first_row[by_layer]
    index = record_of_layer[by_layer]
    by_metric = first_metric[index] + place
    missing: list[Any] = [None]
    layer_ids = pa.array([*chain.from_iterable(each["layer_id"] or missing for each in values)], pa.string())
    found = [each if each and one["layer_id"] else missing for each, one in zip(names, values, strict=True)]
    metric_names = pa.array([*chain.from_iterable(found)], pa.string())
    return index, by_layer, layer_ids.take(pa.array(by_layer)), metric_names.take(pa.array(by_metric))


def _matrix(values: dict[str, Any], name: str, shape: tuple[int, ...]) -> Floats:
    columns = values[name]
    found = np.frombuffer(columns["values"], DTYPES[columns["width"]]).reshape(len(columns["names"]), *shape)
    return found.astype(np.float64, copy=False)


def _stacked(parts: Sequence[Floats], width: int) -> Floats:
    """Return the numbers of all records below each other, `width` in a row; a record without any has a row of NaN."""
    missing = np.full((1, width), np.nan)
    rows = []
    for part in parts:
        # A layer without metrics has a row too; a record without layers has one.
        rows.append(part.reshape(-1, width) if part.size else np.repeat(missing, max(1, part.shape[0]), axis=0))
    return np.concatenate(rows) if rows else np.empty((0, width))


def _nullable(column: Floats) -> Any:
    return pa.array(np.ascontiguousarray(column), pa.float64(), mask=np.isnan(column))


def _model_metrics(values: Values) -> tuple[Index, Any, list[Any]]:
    """Return for each metric of the model the position of its record, its name, and its value."""
    index = np.repeat(np.arange(len(values)), [len(each["model_metrics"]) for each in values])
    names = pa.array([*chain.from_iterable(each["model_metrics"] for each in values)], pa.string())
    return index, names, [*chain.from_iterable(each["model_metrics"].values() for each in values)]
