"""Fields that released versions wrote as lists of nullable numbers, converted to the columns that replaced them.

Release 0.1.0 wrote signals and windows this way, and so may a person who writes one by hand. The values are checked as
strictly as they were then.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from tamiyo.schemas.columns import Columns
from tamiyo.schemas.record import Counts, NonNegatives, Ratios, Sparse


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
