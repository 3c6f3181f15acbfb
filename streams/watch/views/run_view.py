"""The view of one run."""

from typing import Any

import numpy as np

from tamiyo.schemas.adaptation import ControlCommand
from tamiyo.streams.watch.history import History
from tamiyo.streams.watch.history.frames import COUNTED, GRAPH_ROWS, MEASUREMENTS
from tamiyo.streams.watch.history.layers import LayerHistory
from tamiyo.streams.watch.history.runs import RunHistory
from tamiyo.streams.watch.views.decision_row import decision_row
from tamiyo.streams.watch.views.document import Document, UnknownIdError, document, number, numbers, since, wholes
from tamiyo.streams.watch.views.fleet_view import run_row
from tamiyo.streams.watch.views.kernel_lanes import kernel_lanes
from tamiyo.streams.watch.views.projections import projections

CURVES = ("train_loss", "validation_loss", "validation_accuracy")
HEALTH, PROBLEMATIC = (GRAPH_ROWS.index(name) for name in GRAPH_ROWS)


def run(history: History, run_id: str, *, at_ms: int | None = None, after: int = 0) -> Document:
    """Return one run, or what changed of it after a revision.

    Args:
        history: The installation's history.
        run_id: The run.
        at_ms: The past time that the document is made as of, ms since the epoch; None: now.
        after: Revision of a document whose changes are wanted; it has no effect with `at_ms`.

    Raises:
        UnknownIdError: There is no such run at that time.
    """
    after = since(at_ms, after)
    with history.lock:
        found = known_run(history, run_id, at_ms)
        after = after if found.created <= after else 0  # it was dropped, and came again
        decisions = [each for each in found.decisions.values() if each.revision > after]
        rows = [row for each in decisions if (row := decision_row(each, at_ms)) is not None]
        news = found.decisions_revision > after
        errors = [each for each in found.errors if each[0] > after and (at_ms is None or each[1] <= at_ms)]
        return {
            **document(history, "run", at_ms=at_ms, whole=after == 0),
            "run": {**run_row(history, found, at_ms), **_details(history, found, at_ms)},
            "series": _series(found, at_ms, after),
            "decisions": sorted(rows, key=lambda row: (row["step"], row["time_ms"])),
            "projections": projections(found, at_ms, after),
            "topology": _topology(found) if found.topology_revision > after else None,
            "layers": _layers(found.layers, at_ms, after),
            "heat": _heat(found.layers, at_ms, after),
            "kernels": kernel_lanes(found, at_ms) if news else [],
            "errors": [_error(record) for _, _, record in errors],
        }


def known_run(history: History, run_id: str, at_ms: int | None) -> RunHistory:
    """Return a run; raises UnknownIdError where there is none at that time."""
    found = history.runs.get(run_id)
    if found is None or (at_ms is not None and (found.first_ms is None or found.first_ms > at_ms)):
        raise UnknownIdError(f"there is no run {run_id!r}" + (" at that time" if found is not None else ""))
    return found


def _details(history: History, found: RunHistory, at_ms: int | None) -> dict[str, Any]:
    topology, count = found.topology or {}, found.points.until(at_ms)
    last = {
        name: number(found.points.columns[name][count - 1]) if count else None
        for name in ("throughput", "memory_bytes", "step_time_ms")
    }
    return {
        "topology_id": topology.get("topology_id"),
        "cooldown_steps": topology.get("cooldown_steps"),
        "parameter_budget": topology.get("parameter_budget"),
        "memory_bytes": None if last["memory_bytes"] is None else int(last["memory_bytes"]),
        "throughput": last["throughput"],
        "step_time_ms": last["step_time_ms"],
        "orders": _orders(history, found.run_id, at_ms),
    }


def _orders(history: History, run_id: str, at_ms: int | None) -> dict[str, Any] | None:
    standing, command = history.orders.standing(run_id, at_ms)
    if command is None:
        return None
    return {
        "paused": standing.paused,
        "dry_run": standing.dry_run,
        "protected_layers": sorted(standing.protected),
        "issued_by": command.issued_by,
        "reason": command.reason,
    }


def order(command: ControlCommand) -> dict[str, Any]:
    """Return a standing order as JSON values."""
    return {
        "run_id": command.run_id,
        "paused": command.paused,
        "dry_run": command.dry_run,
        "protected_layers": command.protected_layers,
        "issued_by": command.issued_by,
        "reason": command.reason,
        "time_ms": command.time_ms,
    }


def _series(found: RunHistory, at_ms: int | None, after: int) -> dict[str, Any]:
    points = found.points
    end = min(points.until(at_ms), points.full)
    begin = points.since(after, end)
    return {
        "replace": begin == 0 and (after == 0 or points.rewritten > after),
        "step": points.steps[begin:end].tolist(),
        "time_ms": points.times[begin:end].tolist(),
        **{name: numbers(points.columns[name][begin:end]) for name in CURVES},
        "parameters": wholes(points.columns["parameters"][begin:end]),
    }


def _topology(found: RunHistory) -> dict[str, Any] | None:
    topology = found.topology
    return None if topology is None else {"nodes": topology["nodes"], "edges": topology["edges"]}


def _layers(layers: LayerHistory, at_ms: int | None, after: int) -> dict[str, Any] | None:
    """Return the newest frame; None where it has not changed."""
    places = {series: series.until(at_ms) - 1 for series in (layers.measured, layers.graphs)}
    newest = {series: place for series, place in places.items() if place >= 0}
    if not any(series.revisions[place] > after or layers.rewritten > after for series, place in newest.items()):
        return None
    missing = np.full(len(layers.names), np.nan)
    measured, graph = places[layers.measured], places[layers.graphs]
    rows = layers.frame(layers.measured, measured) if measured >= 0 else None
    health = layers.frame(layers.graphs, graph) if graph >= 0 else None
    columns = {
        name: (wholes if name in COUNTED else numbers)(missing if rows is None else rows[row])
        for row, name in enumerate(MEASUREMENTS)
    }
    return {
        "step": max(series.steps[place] for series, place in newest.items()),
        "layer_id": list(layers.names),
        "health": numbers(missing if health is None else health[HEALTH]),
        "problematic": [False if health is None else value == 1 for value in _row(health, PROBLEMATIC, layers)],
        **columns,
    }


def _row(rows: Any, place: int, layers: LayerHistory) -> list[float]:
    return [0.0] * len(layers.names) if rows is None else rows[place].tolist()


def _heat(layers: LayerHistory, at_ms: int | None, after: int) -> dict[str, Any] | None:
    """Return the columns of the heat map: one a graph; without graphs, one a frame of measurements."""
    series = layers.graphs if layers.by_graph else layers.measured
    end = min(series.until(at_ms), series.full)
    replace = after == 0 or layers.rewritten > after
    begin = 0 if replace else series.since(after, end)
    if begin == end and not (replace and after > 0):
        return None
    health, gradients, growth = [], [], []
    measured = layers.measured
    for place in range(begin, end):
        step = series.steps[place]
        near = place if series is measured else measured.before(step)
        rows = layers.frame(measured, near) if near >= 0 else None
        gradients.append(_measured(rows, "gradient_norm", layers))
        growth.append(_measured(rows, "growth_score", layers))
        shown = layers.frame(series, place)[HEALTH] if layers.by_graph else np.full(len(layers.names), np.nan)
        health.append(numbers(shown))
    return {
        "replace": replace,
        "layer_id": list(layers.names),
        "step": series.steps[begin:end].tolist(),
        "health": health,
        "gradient_norm": gradients,
        "growth_score": growth,
    }


def _measured(rows: Any, name: str, layers: LayerHistory) -> list[float | None]:
    return [None] * len(layers.names) if rows is None else numbers(rows[MEASUREMENTS.index(name)])


def _error(record: Any) -> dict[str, Any]:
    names = ("step", "time_ms", "layer_id", "kernel_id", "error_type", "message", "strategy", "success")
    return {name: getattr(record, name) for name in names}
