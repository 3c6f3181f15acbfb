"""Urgency: how soon a layer needs attention, from its health, its trend and its neighbours."""

import numpy as np

from tamiyo.models.graph import edge_ends
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.errors import PolicyError

HEALTH_WEIGHT = 0.6
TREND_WEIGHT = 0.25
NEIGHBOUR_WEIGHT = 0.15
FULL_TREND = 0.1  # loss of health per window at which the trend's urgency is highest


def urgency(graph: ModelGraph, layer_id: str | None) -> float:
    """Return the urgency of an action at a layer.

    urgency = 0.6 (1 - health) + 0.25 min(1, health lost per window / 0.1) + 0.15 (1 - health of the neighbours), where
    the last is the mean over the layers that share an edge with the layer, and its own health if there are none.

    Args:
        graph: The graph of the decision.
        layer_id: A layer of the graph; None (no_op) means the most urgent one.

    Returns:
        The urgency, in [0, 1].

    Raises:
        PolicyError: The graph has no such layer.
    """
    if layer_id is not None and layer_id not in graph.layer_id:
        raise PolicyError(f"expected a layer of graph {graph.graph_id}, got {layer_id!r}")
    illness = 1.0 - np.array(graph.health)
    falling = np.clip(-np.array(graph.health_trend) / FULL_TREND, 0.0, 1.0)
    source, target = edge_ends(graph)
    here, there = np.concatenate([source, target]), np.concatenate([target, source])
    neighbours = np.bincount(here, minlength=len(illness))
    total = np.bincount(here, illness[there], minlength=len(illness))
    around = np.where(neighbours > 0, total / np.maximum(neighbours, 1), illness)
    every = HEALTH_WEIGHT * illness + TREND_WEIGHT * falling + NEIGHBOUR_WEIGHT * around
    chosen = every.max() if layer_id is None else every[graph.layer_id.index(layer_id)]
    return float(np.clip(chosen, 0.0, 1.0))
