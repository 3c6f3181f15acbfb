"""Records as messages and recordings, and the rows that they should become, computed without Arrow."""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tamiyo.schemas.analysis import STATISTICS, HealthSignals, HealthWindow
from tamiyo.schemas.codec import encode
from tamiyo.schemas.columns import entries
from tamiyo.schemas.record import Record, Tensor
from tamiyo.schemas.telemetry import KernelPerformance, LayerHealth
from tamiyo.schemas.topics import BY_NAME, Topic
from tamiyo.streams.messages import Message
from tests.support.recordings import make_recording, message

TIME_MS = 1_700_000_000_000
FRAME = ("run_id", "step", "epoch", "time_ms", "companions", "final")


def as_messages(topic: Topic, records: Iterable[Record | bytes | None], **fields: Any) -> list[Message]:
    """Return messages with these records, under their run's key, a second apart."""
    found = []
    for offset, record in enumerate(records):
        key = str(getattr(record, "run_id", getattr(record, "name", "run-1"))).encode()
        value = encode(record) if isinstance(record, Record) else record
        found.append(
            message(topic.name, offset, value, **{"key": key, "timestamp_ms": TIME_MS + 1000 * offset, **fields})
        )
    return found


def record_topics(folder: Path, content: dict[Topic, Sequence[Record | bytes | None]], **fields: Any) -> Path:
    """Write a recording with the records of each topic on partition 0; returns its folder."""
    messages = [each for topic, records in content.items() for each in as_messages(topic, records)]
    make_recording(folder, messages, **fields)
    return folder


def time(ms: int) -> datetime:
    """Return a time of Arrow as Python has it."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)


def plain(record: Record, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return the cells of a record that is one row."""
    cells: dict[str, Any] = {}
    for name in type(record).model_fields:
        if name not in without:
            cells.update(cell(name, getattr(record, name)))
    return cells


def cell(name: str, value: Any) -> dict[str, Any]:
    """Return the cells of one field."""
    if name == "time_ms":
        return {"time": time(value)}
    if name == "orders":
        return {name: [(key, time(each)) for key, each in value.items()]}
    if isinstance(value, Tensor):
        shape = {} if name in ("probabilities", "global_features") else {f"{name}_shape": value.shape}
        return {name: value.numpy().ravel().tolist(), **shape}
    if isinstance(value, bytes):
        return {name: [each != 0 for each in value]}
    return {name: nested(value)}


def nested(value: Any) -> Any:
    """Return a value inside a record as Arrow gives it back."""
    if isinstance(value, Record):
        return plain(value)
    if isinstance(value, list):
        return [nested(each) for each in value]
    return [*value.items()] if isinstance(value, dict) else value


def expected_rows(record: Record) -> list[dict[str, Any]]:
    """Return the rows of a record in its topic's main table."""
    if isinstance(record, HealthSignals):
        return _signal_rows(record)
    if isinstance(record, HealthWindow):
        return _window_rows(record)
    if isinstance(record, KernelPerformance | LayerHealth):
        return _frame_rows(record)
    return [plain(record)]


def expected_model_rows(record: HealthSignals | HealthWindow) -> list[dict[str, Any]]:
    """Return the rows of a record in its topic's table of the whole model."""
    header = plain(record, ("layer_id", "columns", "sampling", "model_metrics"))
    if isinstance(record, HealthSignals):
        return [{**header, "metric": name, "value": value} for name, value in record.model_metrics.items()]
    return [{**header, "metric": name, **plain(stats)} for name, stats in record.model_metrics.items()]


def _frame_rows(record: KernelPerformance | LayerHealth) -> list[dict[str, Any]]:
    columns = [name for name in type(record).model_fields if name not in FRAME]
    header = plain(record, columns)
    lists = {name: getattr(record, name) or [None] * len(record.layer_id) for name in columns}
    if not record.layer_id:
        return [{**header, **dict.fromkeys(columns)}]
    return [{**header, **{name: lists[name][at] for name in columns}} for at in range(len(record.layer_id))]


def _signal_rows(record: HealthSignals) -> list[dict[str, Any]]:
    header = plain(record, ("layer_id", "columns", "sampling", "model_metrics"))
    lists = {name: entries(column) for name, column in record.metrics.items()}
    rows = []
    for at, layer in enumerate(record.layer_id or [None]):
        chances = {
            "priority": float(record.priority[at]) if record.layer_id else None,
            "survival": float(record.survival[at]) if record.layer_id else None,
        }
        for name in (lists or [None]) if record.layer_id else [None]:
            value = lists[name][at] if name is not None else None
            rows.append({**header, "layer_id": layer, "metric": name, "value": value, **chances})
    return rows


def _window_rows(record: HealthWindow) -> list[dict[str, Any]]:
    header = plain(record, ("layer_id", "columns", "model_metrics"))
    lists = {name: stats.lists() for name, stats in record.metrics.items()}
    rows = []
    for at, layer in enumerate(record.layer_id or [None]):
        for name in (lists or [None]) if record.layer_id else [None]:
            values = {each: lists[name][each][at] if name is not None else None for each in STATISTICS}
            rows.append({**header, "layer_id": layer, "metric": name, **values})
    return rows


def json_cell(value: Any) -> Any:
    """Return a cell as JSON lines have it."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


NAMES = tuple(BY_NAME)
