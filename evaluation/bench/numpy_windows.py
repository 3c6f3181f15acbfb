"""The arithmetic of the peers that read telemetry frames: checks, health score and window statistics in plain numpy.

It reads the same Avro frames as intake and publishes the window record of release 0.1.0, lists of nullable doubles,
with everything that Quix Streams computes in `quix_peer`, for a whole frame at a time. Frames are decoded with fastavro
into dictionaries: without pydantic, this is the fastest decoder that a project of its own would use. It omits what
`quix_peer` omits: deviations and priorities, deterministic ids, dead letters, late records, and state that survives a
restart.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fastavro
import numpy as np
import numpy.typing as npt

from tamiyo.evaluation.bench.quix_peer import FIXED
from tamiyo.schemas.analysis import HealthWindow
from tamiyo.schemas.avro_schema import released
from tamiyo.schemas.codec import HEADER, header, parsed_schema, single_object_header
from tamiyo.schemas.record import Record
from tamiyo.schemas.telemetry import Frame, KernelPerformance, LayerHealth, ModelPerformance

Floats = npt.NDArray[np.float64]
SOURCES: dict[str, type[Record]] = {
    "kernel_performance": KernelPerformance,
    "health_signals": LayerHealth,
    "performance_metrics": ModelPerformance,
}
"""The records by the last part of their topics' names."""
COLUMNS = {
    source: [name for name in record.model_fields if name not in FIXED]
    for source, record in SOURCES.items()
    if "layer_id" in record.model_fields
}
MODEL = [name for name in ModelPerformance.model_fields if name not in Frame.model_fields]
WINDOW_HEADER = single_object_header(released(HealthWindow)["0.1.0"])
WINDOW_SCHEMA = fastavro.parse_schema(released(HealthWindow)["0.1.0"])
SIGNED = ("contribution", "avg_correlation", "train_loss", "validation_loss")
"""Metrics that may be negative."""


@dataclass(slots=True)
class _Part:
    """One frame inside a window."""

    step: int
    layers: list[str]
    names: list[str]
    values: Floats
    """[metrics, layers]; a metric of the whole model has one layer."""


@dataclass(slots=True)
class _Window:
    start: int
    time_ms: int = 0
    last_step: int = 0
    frames: int = 0
    final: bool = False
    parts: dict[str, list[_Part]] = field(default_factory=dict)


@dataclass(slots=True)
class _Run:
    highest: dict[str, int] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    windows: dict[int, _Window] = field(default_factory=dict)


class Windows:
    """Event-time tumbling windows of `width` steps of any number of runs.

    A window is final once every companion of its frames has passed it, or the run has ended, as in the windows stage.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._runs: dict[str, _Run] = {}

    def add(self, topic: str, value: bytes) -> list[tuple[str, bytes]]:
        """Add an encoded frame; return the run and the encoded record of each window that it completes.

        An invalid frame is left out, and so is what is no frame of layers or of the model.
        """
        source = topic.rpartition(".")[2]
        record = SOURCES.get(source)
        frame = _decode(value, record) if record is not None else None
        if frame is None:
            return []
        run_id, step = frame["run_id"], frame["step"]
        part = _model_part(frame) if source == "performance_metrics" else _layer_part(source, frame)
        if part is None or step < 0:
            return []
        run = self._runs.setdefault(run_id, _Run())
        start = step // self._width * self._width
        window = run.windows.setdefault(start, _Window(start))
        window.parts.setdefault(source, []).append(part)
        window.time_ms = max(window.time_ms, frame["time_ms"])
        window.last_step = max(window.last_step, step)
        window.frames += 1
        window.final |= frame["final"]
        run.highest[source] = max(run.highest.get(source, 0), step)
        if frame["final"]:
            run.ended.add(source)
        return [(run_id, self._record(run_id, each)) for each in self._completed(run_id, run, frame["companions"])]

    def _completed(self, run_id: str, run: _Run, companions: Sequence[str]) -> Iterable[_Window]:
        expected = {name.rpartition(".")[2] for name in companions}
        if expected <= run.ended:
            del self._runs[run_id]
            return [run.windows[start] for start in sorted(run.windows)]
        if not expected <= run.highest.keys():
            return []
        watermark = min(run.highest[source] for source in expected)
        passed = sorted(start for start in run.windows if start + self._width <= watermark)
        return [run.windows.pop(start) for start in passed]

    def _record(self, run_id: str, window: _Window) -> bytes:
        layers: dict[str, int] = {}
        metrics: dict[str, Any] = {}
        model: dict[str, Any] = {}
        by_source = {source: sorted(parts, key=lambda part: part.step) for source, parts in window.parts.items()}
        for parts in (parts for source, parts in by_source.items() if source in COLUMNS):
            for part in parts:
                for layer in part.layers:
                    layers.setdefault(layer, len(layers))
        names = list(layers)
        for source, parts in by_source.items():
            steps = np.array([part.step for part in parts], dtype=np.float64)
            if source in COLUMNS:
                stacked = np.stack([part.values if part.layers == names else _aligned(part, layers) for part in parts])
                metrics.update(zip(parts[0].names, _columns(stacked, steps), strict=True))
            else:
                stacked = np.stack([part.values for part in parts])
                stats = zip(parts[0].names, _columns(stacked, steps), strict=True)
                model = {name: {each: column[0] for each, column in stat.items()} for name, stat in stats}
        values = {
            "run_id": run_id,
            "window_id": f"{run_id}/{window.start}",
            "clock": "step",
            "start": window.start,
            "end": window.start + self._width,
            "first_step": min(part.step for parts in by_source.values() for part in parts),
            "last_step": window.last_step,
            "time_ms": window.time_ms,
            "final": window.final,
            "layer_id": names,
            "metrics": metrics,
            "model_metrics": {name: stat for name, stat in model.items() if stat["count"]},
            "signals": sum(len(part.layers) for parts in by_source.values() for part in parts),
            "frames": window.frames,
            "shed": 0,
            "signals_digest": "none",
        }
        buffer = io.BytesIO()
        buffer.write(WINDOW_HEADER)
        fastavro.schemaless_writer(buffer, WINDOW_SCHEMA, values)
        return buffer.getvalue()


def _decode(value: bytes, record: type[Record]) -> dict[str, Any] | None:
    if value[:HEADER] != header(record):
        return None
    buffer = io.BytesIO(value)
    buffer.seek(HEADER)
    decoded: dict[str, Any] = fastavro.schemaless_reader(buffer, parsed_schema(record), None)
    return decoded


def _layer_part(source: str, frame: Mapping[str, Any]) -> _Part | None:
    """Return the metrics of a frame's layers with the health score, None if a value is not allowed."""
    names = COLUMNS[source]
    values = np.array([frame[name] for name in names], dtype=np.float64)
    if not _allowed(values, names, sum(frame[name].count(None) for name in names)):
        return None
    if source == "kernel_performance":
        row = dict(zip(names, values, strict=True))
        execution = 1 - np.minimum(row["execution_latency_ms"] / 10, 1)
        errors = 1 - np.minimum(5 * row["error_count"] / np.maximum(row["total_executions"], 1), 1)
        health = 0.4 * execution + 0.4 * errors + 0.2 * row["cache_hit_rate"]
        names, values = [*names, "health"], np.vstack([values, health])
    return _Part(frame["step"], frame["layer_id"], names, values)


def _model_part(frame: Mapping[str, Any]) -> _Part | None:
    measured = [frame[name] for name in MODEL]
    values = np.array([measured], dtype=np.float64).T
    return _Part(frame["step"], [], MODEL, values) if _allowed(values, MODEL, measured.count(None)) else None


def _allowed(values: Floats, names: Sequence[str], missing: int) -> bool:
    """Return whether every value is None or a finite number, and negative only where the metric allows it."""
    if np.count_nonzero(np.isnan(values)) != missing or np.isinf(values).any():
        return False
    return not any((row < 0).any() for row, name in zip(values, names, strict=True) if name not in SIGNED)


def _aligned(part: _Part, layers: Mapping[str, int]) -> Floats:
    """Return a frame's values with a column a layer of the window."""
    values = np.full((len(part.names), len(layers)), np.nan)
    values[:, [layers[layer] for layer in part.layers]] = part.values
    return values


def _columns(values: Floats, steps: Floats) -> list[dict[str, list[Any]]]:
    """Return the statistics of each metric, a column each, from values of [frames, metrics, layers]."""
    known = ~np.isnan(values)
    zeroed = np.where(known, values, 0.0)
    count = known.sum(axis=0)
    divisor = np.maximum(count, 1)
    offset = np.where(known, values - zeroed.sum(axis=0) / divisor, 0.0)
    time = np.where(known, steps[:, None, None], 0.0)
    time_offset = np.where(known, time - time.sum(axis=0) / divisor, 0.0)
    time_square = (time_offset * time_offset).sum(axis=0)
    place = np.where(known, np.arange(len(values))[:, None, None], -1).max(axis=0)
    several = time_square > 0
    slope = (time_offset * offset).sum(axis=0) / np.where(several, time_square, 1.0)
    columns = {
        "mean": zeroed.sum(axis=0) / divisor,
        "variance": (offset * offset).sum(axis=0) / divisor,
        "minimum": np.where(known, values, np.inf).min(axis=0),
        "maximum": np.where(known, values, -np.inf).max(axis=0),
        "last": np.take_along_axis(values, np.maximum(place, 0)[None], axis=0)[0],
    }
    seen = count > 0
    return [
        {
            "count": count[metric].tolist(),
            **{name: _optional(column[metric], seen[metric]) for name, column in columns.items()},
            "slope": _optional(slope[metric], several[metric]),
        }
        for metric in range(values.shape[1])
    ]


def _optional(column: Floats, known: npt.NDArray[np.bool_]) -> list[float | None]:
    """Return a column as a list, None where it is not known."""
    values: list[float | None] = column.tolist()
    if known.all():
        return values
    return [value if is_known else None for value, is_known in zip(values, known.tolist(), strict=True)]
