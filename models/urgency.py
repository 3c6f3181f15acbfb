"""How soon a layer needs attention, from its health, its trend and its neighbours."""

import numpy as np

from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.errors import PolicyError

HEALTH_WEIGHT = 0.6
TREND_WEIGHT = 0.25
NEIGHBOUR_WEIGHT = 0.15
FULL_TREND = 0.1  # a loss of this much health a window is as urgent as a trend can be


def urgency(graph: ModelGraph, layer_id: str | None) -> float:
    """Return the urgency at a layer, in [0, 1]; for None (no_op) that of the layer that needs it most.

    0.6 (1 - health) + 0.25 min(1, lost health a window / 0.1) + 0.15 (1 - mean health of the layers that share an edge
    with it; its own where none does). Raises PolicyError for a layer that is not in the graph.
    """
    if layer_id is not None and layer_id not in graph.layer_id:
        raise PolicyError(f"there is no layer {layer_id!r} in graph {graph.graph_id}")
    illness = 1.0 - np.array(graph.health)
    falling = np.clip(-np.array(graph.health_trend) / FULL_TREND, 0.0, 1.0)
    total, neighbours = np.zeros_like(illness), np.zeros_like(illness)
    for here, there in ((graph.edge_source, graph.edge_target), (graph.edge_target, graph.edge_source)):
        at = np.array(here, dtype=np.int64)
        np.add.at(total, at, illness[np.array(there, dtype=np.int64)])
        np.add.at(neighbours, at, 1.0)
    around = np.where(neighbours > 0, total / np.maximum(neighbours, 1.0), illness)
    every = HEALTH_WEIGHT * illness + TREND_WEIGHT * falling + NEIGHBOUR_WEIGHT * around
    chosen = every.max() if layer_id is None else every[graph.layer_id.index(layer_id)]
    return float(np.clip(chosen, 0.0, 1.0))
