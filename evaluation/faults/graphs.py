"""Checks of graphs: every window has one, joined with the run's topology and the windows before it.

Values that a graph copies from its window are recomputed here. All features are a pure function (`models/graph.py`);
faults could only change its inputs, so it is called again with the right windows and must return the same bytes.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from tamiyo.evaluation.faults.ledger import Evidence
from tamiyo.evaluation.faults.signals import is_close
from tamiyo.models.graph import build_graph
from tamiyo.schemas.codec import encode
from tamiyo.schemas.identity import graph_id
from tamiyo.schemas.topics import GRAPHS, TOPOLOGY, WINDOWS

HISTORY = 8  # earlier windows that a graph uses
FLOAT32 = 1e-6  # relative: features are float32


def graphs(evidence: Evidence) -> Iterator[tuple[str, str, str]]:
    """Yield the violations of graphs."""
    topologies = evidence.first(TOPOLOGY, "run_id")
    published = evidence.first(GRAPHS, "graph_id")
    ids: dict[str, set[str]] = defaultdict(set)
    for entry in published.values():
        ids[entry.record.window_id].add(entry.record.graph_id)
    windows = evidence.first(WINDOWS, "window_id")
    for name in ids.keys() - windows.keys():
        yield "a graph without a window", name, f"there is no window {name}"
    history: dict[str, list[Any]] = defaultdict(list)
    for name, entry in windows.items():
        window = entry.record
        before = history[window.run_id]
        topology = topologies.get(window.run_id)
        if topology is None:
            yield "a topology is missing", entry.place, f"run {window.run_id}"
            continue
        expected = graph_id(name, topology.record.topology_id)
        if not ids[name]:
            yield "a graph is missing", entry.place, f"window {name} has none"
        elif ids[name] != {expected}:
            yield "several graph ids", entry.place, f"window {name}: {sorted(ids[name])}, not {expected}"
        else:
            graph = published[expected]
            wrong = _copied(window, graph.record)
            if wrong is None and encode(build_graph(window, topology.record, before[-HISTORY:])) != graph.message.value:
                wrong = f"it was not built from the {len(before[-HISTORY:])} windows before it"
            if wrong is not None:
                yield "a graph is wrong", graph.place, wrong
        before.append(window)


def _copied(window: Any, graph: Any) -> str | None:
    """Return which value copied from the window differs."""
    row = {layer: number for number, layer in enumerate(window.layer_id)}

    def mean(metric: str, layer: str, default: float) -> float:
        stats = window.metrics.get(metric)
        value = float(stats.mean[row[layer]]) if stats is not None and layer in row else math.nan
        return default if math.isnan(value) else value

    features = graph.node_features.numpy()
    for node, layer in enumerate(graph.layer_id):
        if not is_close(min(max(mean("health", layer, 1.0), 0.0), 1.0), graph.health[node]):
            return f"health of {layer} is {graph.health[node]}"
        latency = min(mean("execution_latency_ms", layer, 0.0) / 10, 10.0)
        if abs(latency - float(features[node, 1])) > FLOAT32 * max(latency, 1.0):
            return f"latency of {layer} is {features[node, 1]}"
    means = {name: stats.mean for name, stats in window.model_metrics.items()}
    copies = (window.run_id, window.last_step, window.time_ms, window.final, window.signals)
    if (graph.run_id, graph.step, graph.time_ms, graph.final, graph.signals) != copies:
        return f"run, step, time, end or signals differ from window {window.window_id}"
    if any(name not in means or not is_close(means[name], value) for name, value in graph.model_metrics.items()):
        return "the model's metrics differ from the window's means"
    return None
