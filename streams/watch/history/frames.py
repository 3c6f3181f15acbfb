"""What the history keeps of the records that hold columns: a few rows of numbers, without making the record."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tamiyo.schemas.analysis import HealthWindow, ModelGraph
from tamiyo.schemas.codec import decode_fields
from tamiyo.schemas.errors import RecordError
from tamiyo.schemas.record import MAX_LAYERS
from tamiyo.schemas.telemetry import LayerHealth

Rows = npt.NDArray[np.float32]
"""[measurements, layers]; NaN: not measured."""

MEASUREMENTS = (
    "gradient_norm",
    "update_ratio",
    "growth_score",
    "contribution",
    "dormant_seeds",
    "active_seeds",
    "fossilized_seeds",
    "error_seeds",
    "alpha",
    "kernel_parameters",
    "learning_rate_scale",
)
"""The rows of a LayerFrame."""
COUNTED = frozenset(name for name in MEASUREMENTS if name.endswith(("_seeds", "_parameters")))
"""Those of them that are whole numbers."""
GRAPH_ROWS = ("health", "problematic")
"""The rows of a GraphFrame."""
LARGEST_STEP = 2**53
LARGEST_COUNT = 2**40  # of layer-signals in a window; sums of them stay 64-bit numbers
LONGEST_ID = 200  # characters, as records have them


@dataclass(frozen=True, slots=True)
class LayerFrame:
    """The measurements of a run's layers at one step."""

    run_id: str
    step: int
    final: bool
    layer_id: list[str]
    rows: Rows

    @classmethod
    def decode(cls, value: bytes | None) -> "LayerFrame":
        """Decode the value of a LayerHealth message; raises SchemaError."""
        found = decode_fields(value, LayerHealth)
        layers = found["layer_id"]
        rows = _rows([found[name] for name in MEASUREMENTS], layers, "LayerHealth")
        return cls(_id(found["run_id"]), _step(found["step"]), found["final"], layers, rows)


@dataclass(frozen=True, slots=True)
class GraphFrame:
    """The health of a run's layers at the end of a window."""

    run_id: str
    step: int
    layer_id: list[str]
    rows: Rows

    @classmethod
    def decode(cls, value: bytes | None) -> "GraphFrame":
        """Decode the value of a ModelGraph message; raises SchemaError."""
        found = decode_fields(value, ModelGraph, ("run_id", "step", "layer_id", "health", "problematic"))
        layers, problematic = found["layer_id"], set(found["problematic"])
        rows = _rows([found["health"], [layer in problematic for layer in layers]], layers, "ModelGraph")
        return cls(_id(found["run_id"]), _step(found["step"]), layers, rows)


@dataclass(frozen=True, slots=True)
class WindowFrame:
    """The losses of one window, and how many of its layer-signals were shed."""

    run_id: str
    middle: float
    """The step that the window's means stand for."""
    end: int
    """First step after the window."""
    train_loss: float
    """Mean, nats; NaN: not measured."""
    validation_loss: float
    signals: int
    shed: int

    @classmethod
    def decode(cls, value: bytes | None) -> "WindowFrame":
        """Decode the value of a HealthWindow message; raises SchemaError."""
        found = decode_fields(value, HealthWindow)
        # A window in event time spans the steps that it has.
        steps = found["clock"] == "step"
        start, end = (found["start"], found["end"]) if steps else (found["first_step"], found["last_step"] + 1)
        return cls(
            run_id=_id(found["run_id"]),
            middle=(_step(start) + _step(end)) / 2,
            end=end,
            train_loss=_mean(found["model_metrics"], "train_loss"),
            validation_loss=_mean(found["model_metrics"], "validation_loss"),
            signals=min(max(0, found["signals"]), LARGEST_COUNT),
            shed=min(max(0, found["shed"]), LARGEST_COUNT),
        )


def _id(value: str) -> str:
    if not 0 < len(value) <= LONGEST_ID:
        raise RecordError(f"expected an id of 1 to {LONGEST_ID} characters, got {len(value)}")
    return value


def _step(value: int) -> int:
    if not 0 <= value <= LARGEST_STEP:
        raise RecordError(f"expected a step in 0..2**53, got {value}")
    return value


def _mean(metrics: Any, name: str) -> float:
    mean: float = metrics[name]["mean"] if name in metrics else math.nan
    return mean if math.isfinite(mean) else math.nan


def _rows(columns: list[list[Any]], layers: list[str], record: str) -> Rows:
    if len(layers) > MAX_LAYERS or any(len(column) != len(layers) for column in columns):
        raise RecordError(f"expected columns of {len(layers)} layers, at most {MAX_LAYERS}, in a {record}")
    for layer in layers:
        _id(layer)
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        rows: Rows = np.array(columns, dtype=np.float32).reshape(len(columns), len(layers))
    rows[np.isinf(rows)] = np.nan
    return rows
