"""The expected signals and windows, recomputed value by value from the specification's formulas.

Nothing here is shared with the stages. Signals follow from the telemetry log alone. Windows follow from the log of
signals: the five telemetry topics have no order among them, so the order of the signals decides which frame was late.
"""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tamiyo.evaluation.faults.ledger import Entry
from tamiyo.schemas.identity import identity, window_id
from tamiyo.schemas.telemetry import (
    OPTIONAL_HEALTH,
    CacheHitRates,
    ErrorRecoveryEvent,
    Frame,
    KernelPerformance,
    LayerHealth,
    ModelPerformance,
)
from tamiyo.schemas.topics import KERNEL_PERFORMANCE, LAYER_HEALTH, MODEL_PERFORMANCE

EVERY_STEP = {KERNEL_PERFORMANCE.name, LAYER_HEALTH.name, MODEL_PERFORMANCE.name}
STATISTICS = 7  # of each metric of a layer
CLOSE = 1e-9  # relative: the stages sum in another order

Column = list[float | None]


def signal_id(topic: str, frame: Any) -> str:
    """Return the id of a frame's signal: one a source and step, a final frame apart; errors differ by content."""
    parts = [frame.run_id, topic, frame.step, *(["final"] if frame.final else [])]
    if isinstance(frame, ErrorRecoveryEvent):
        parts.append(frame.model_dump_json())
    return identity("signal", *parts)


def released_signal_id(entry: Entry) -> str:
    """Return the id that release 0.1.0 gave the signal of an error: errors differ by their offsets."""
    frame = entry.record
    return identity("signal", frame.run_id, entry.message.topic, frame.step, entry.message.offset)


def found_id(entry: Entry, published: Container[str], *, upgraded: bool) -> str:
    """Return the id of a frame's signal: that of the last release if such a one is published after an upgrade."""
    if upgraded and isinstance(entry.record, ErrorRecoveryEvent) and released_signal_id(entry) in published:
        return released_signal_id(entry)
    return signal_id(entry.message.topic, entry.record)


def health(latency_ms: float, errors: int, executions: int, hit_rate: float) -> float:
    """Return the specification's health score of one layer."""
    speed = 1 - min(latency_ms / 10, 1)
    correct = 1 - min(5 * errors / max(executions, 1), 1)
    return 0.4 * speed + 0.4 * correct + 0.2 * hit_rate


def frame_metrics(frame: Any) -> tuple[list[str], dict[str, Column], dict[str, float]]:
    """Return a frame's layers, its metrics by layer, and those of the whole model."""
    own = [name for name in type(frame).model_fields if name not in (*Frame.model_fields, "layer_id")]
    if isinstance(frame, KernelPerformance):
        columns: dict[str, Column] = {n: list(getattr(frame, n)) for n in own if n not in ("seed_id", "chunk_id")}
        rows = zip(
            frame.execution_latency_ms, frame.error_count, frame.total_executions, frame.cache_hit_rate, strict=True
        )
        columns["health"] = [health(*row) for row in rows]
        return list(frame.layer_id), columns, {}
    if isinstance(frame, LayerHealth):
        columns = {name: list(getattr(frame, name)) for name in own}
        unmeasured = [n for n in OPTIONAL_HEALTH if all(value is None for value in columns[n])]
        return list(frame.layer_id), {n: column for n, column in columns.items() if n not in unmeasured}, {}
    if isinstance(frame, ErrorRecoveryEvent):
        values = {
            "recovery_errors": 1.0,
            "recovery_success": float(frame.success),
            "recovery_time_ms": frame.recovery_time_ms,
        }
        return [frame.layer_id], {name: [value] for name, value in values.items()}, {}
    if isinstance(frame, CacheHitRates):
        values = {"cache_hit_rate": frame.hit_rate, "cache_entries": frame.entries, "cache_evictions": frame.evictions}
        return [], {}, {name: float(value) for name, value in values.items()}
    assert isinstance(frame, ModelPerformance)
    return [], {}, {name: float(value) for name in own if (value := getattr(frame, name)) is not None}


@dataclass(slots=True)
class Window:
    """One expected window."""

    run_id: str
    start: int
    end: int
    final: bool
    closed_by: Entry
    """The signal that made it final."""
    members: list[Any]
    """Its signals, ordered by event time and source."""

    @property
    def window_id(self) -> str:
        """Return its id."""
        return window_id(self.run_id, "step", self.end - self.start, self.start)


@dataclass(slots=True)
class _Run:
    floor: int = 0
    highest: dict[str, int] = field(default_factory=dict)
    companions: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    open: dict[int, list[Any]] = field(default_factory=dict)


@dataclass(slots=True)
class ExpectedWindows:
    """The windows that the signals of one partition fill."""

    windows: list[Window] = field(default_factory=list)
    late: dict[str, Entry] = field(default_factory=dict)
    """By signal id, signals that arrived after their window was final."""
    unfinished: list[str] = field(default_factory=list)
    """Runs whose last frames are missing: their windows stay open."""


def expected_windows(signals: Iterable[Entry], width: int) -> ExpectedWindows:
    """Return the windows that one partition's signals fill; signals with a known id are ignored."""
    found, runs, seen = ExpectedWindows(), dict[str, _Run](), set[str]()
    for entry in signals:
        signal = entry.record
        if signal.signal_id in seen:
            continue
        seen.add(signal.signal_id)
        run = runs.setdefault(signal.run_id, _Run())
        clock = signal.step
        if clock < run.floor:
            if not signal.final:
                found.late[signal.signal_id] = entry
                continue
            clock = run.floor
        run.open.setdefault(clock // width * width, []).append(signal)
        run.companions.update(signal.companions)
        run.highest[signal.source] = max(clock, run.highest.get(signal.source, 0))
        if signal.final:
            run.ended.add(signal.source)
        expected = run.companions or {source for source in run.highest if source in EVERY_STEP}
        over = bool(expected) and expected <= run.ended
        if expected and expected <= run.highest.keys():
            run.floor = max(run.floor, min(run.highest[source] for source in expected) // width * width)
        for start in sorted(run.open):
            if over or start + width <= run.floor:
                members = sorted(run.open.pop(start), key=lambda s: (s.step, s.source, s.final, s.signal_id))
                final = over and not run.open
                found.windows.append(Window(signal.run_id, start, start + width, final, entry, members))
                run.floor = max(run.floor, start + width)
    found.unfinished = [run_id for run_id, run in runs.items() if run.open]
    return found


def statistics(points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return count, mean, variance, minimum, maximum, last and slope of (clock, value) points in order."""
    count = len(points)
    if not count:
        return {"count": 0, **dict.fromkeys(("mean", "variance", "minimum", "maximum", "last", "slope"))}
    values = [value for _, value in points]
    mean = math.fsum(values) / count
    clock = math.fsum(time for time, _ in points) / count
    spread = math.fsum((time - clock) ** 2 for time, _ in points)
    slope = math.fsum((time - clock) * (value - mean) for time, value in points) / spread if spread else None
    return {
        "count": count,
        "mean": mean,
        "variance": math.fsum((value - mean) ** 2 for value in values) / count,
        "minimum": min(values),
        "maximum": max(values),
        "last": values[-1],
        "slope": slope,
    }


def statistics_bytes(window: Window) -> int:
    """Return how many bytes the statistics of a window's layers take, as one float32 each: less than the record has."""
    layers = {layer for signal in window.members for layer in signal.layer_id}
    metrics = {name for signal in window.members for name in signal.columns.names}
    return len(layers) * len(metrics) * STATISTICS * 4


def differs(window: Window, record: Any) -> str | None:
    """Return how a published window differs from the expected one; None if it does not."""
    members = window.members
    layers = list(dict.fromkeys(layer for signal in members for layer in signal.layer_id))
    plain = {
        "run_id": window.run_id,
        "window_id": window.window_id,
        "clock": "step",
        "start": window.start,
        "end": window.end,
        "final": window.final,
        "first_step": min(signal.step for signal in members),
        "last_step": max(signal.step for signal in members),
        "time_ms": max(signal.time_ms for signal in members),
        "layer_id": layers,
        "signals": sum(len(signal.layer_id) for signal in members),
        "frames": len(members),
        "shed": sum(signal.shed for signal in members),
        "signals_digest": identity("signals", *sorted(signal.signal_id for signal in members)),
    }
    for name, value in plain.items():
        if getattr(record, name) != value:
            return f"{name} is {getattr(record, name)!r}, expected {value!r}"
    by_layer: dict[str, dict[str, list[tuple[float, float]]]] = {}
    model: dict[str, list[tuple[float, float]]] = {}
    for signal in members:
        for name, column in signal.lists()["metrics"].items():
            points = by_layer.setdefault(name, {layer: [] for layer in layers})
            for layer, value in zip(signal.layer_id, column, strict=True):
                if value is not None:
                    points[layer].append((signal.step, value))
        for name, value in signal.model_metrics.items():
            model.setdefault(name, []).append((signal.step, value))
    if set(by_layer) != set(record.metrics) or set(model) != set(record.model_metrics):
        return f"its metrics are {sorted([*record.metrics, *record.model_metrics])}"
    columns = record.lists()["metrics"]
    for name, points in by_layer.items():
        for row, layer in enumerate(layers):
            published = {key: column[row] for key, column in columns[name].items()}
            if not _same(statistics(points[layer]), published):
                return f"{name} of {layer} is {published}, expected {statistics(points[layer])}"
    for name, whole in model.items():
        published = record.model_metrics[name].model_dump()
        if not _same(statistics(whole), published):
            return f"{name} is {published}, expected {statistics(whole)}"
    return None


def is_close(expected: float | None, published: float | None, scale: float = 0.0) -> bool:
    """Return whether two numbers differ by no more than rounding at their `scale`."""
    if expected is None or published is None:
        return expected is None and published is None
    return math.isclose(expected, published, rel_tol=CLOSE, abs_tol=CLOSE * scale)


def _same(expected: Mapping[str, Any], published: Mapping[str, Any]) -> bool:
    largest = max(abs(expected["minimum"] or 0.0), abs(expected["maximum"] or 0.0))
    scales = {"variance": largest**2, "slope": largest, "mean": largest}
    return all(is_close(value, published[name], scales.get(name, 0.0)) for name, value in expected.items())
