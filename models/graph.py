"""Joins a window with its topology into the graph that the policy sees."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tamiyo.models.features import FEATURE_VERSION, HISTORY_WINDOWS, GraphInputs
from tamiyo.models.features.edges import EdgeInputs, edge_features
from tamiyo.models.features.network import global_features
from tamiyo.models.features.nodes import node_features
from tamiyo.models.features.scales import bounded
from tamiyo.schemas.analysis import HealthWindow, ModelGraph
from tamiyo.schemas.errors import RecordError
from tamiyo.schemas.identity import graph_id
from tamiyo.schemas.record import Tensor
from tamiyo.schemas.telemetry import ModelTopology

__all__ = ["HISTORY_WINDOWS", "build_graph", "edge_ends"]


@np.errstate(over="ignore", under="ignore", invalid="ignore")  # an overflow ends at the bound of every feature
def build_graph(window: HealthWindow, topology: ModelTopology, history: Sequence[HealthWindow]) -> ModelGraph:
    """Return the graph of a window. Pure: the same inputs give the same bytes.

    Args:
        window: The window to describe.
        topology: The run's topology. Its layers are the nodes, in its order, with signals or without; layers that only
            the window names are left out.
        history: The run's preceding windows, oldest first; only the last HISTORY_WINDOWS count.

    Returns:
        The graph, with features [layers, NODE_FEATURES], [edges, EDGE_FEATURES] and [GLOBAL_FEATURES].

    Raises:
        RecordError: Window, topology and history are not of one run.

    Example:
        >>> from tamiyo.models.features import node_column
        >>> from tamiyo.schemas.telemetry import LayerNode
        >>> layer = LayerNode(
        ...     layer_id="fc", type="linear", parameters=72, input_shape=[8], output_shape=[8], seeds=1
        ... )
        >>> topology = ModelTopology(
        ...     run_id="run-1", topology_id="t", time_ms=0, layers=[layer], edges=[], parameters=72, parameter_budget=50
        ... )
        >>> window = HealthWindow(
        ...     run_id="run-1", window_id="w", clock="step", start=0, end=50, first_step=0, last_step=40, time_ms=0,
        ...     layer_id=[], metrics={}, model_metrics={}, signals=0, frames=0, signals_digest="none",
        ... )
        >>> graph = build_graph(window, topology, history=[])
        >>> graph.layer_id, node_column(graph, "log_parameters").round(2).tolist()
        (['fc'], [1.8600000143051147])
    """
    past = list(history)[-HISTORY_WINDOWS:]
    if {topology.run_id, *(record.run_id for record in past)} != {window.run_id}:
        raise RecordError(
            f"expected records of run {window.run_id}, but window {window.window_id} was joined with another run's"
        )
    g = GraphInputs(window, topology, past)
    index = {layer: node for node, layer in enumerate(g.layers)}
    e = EdgeInputs(
        g,
        source=[index[edge.source] for edge in topology.edges],
        target=[index[edge.target] for edge in topology.edges],
    )
    return ModelGraph(
        run_id=window.run_id,
        graph_id=graph_id(window.window_id, topology.topology_id),
        window_id=window.window_id,
        topology_id=topology.topology_id,
        step=window.last_step,
        time_ms=window.time_ms,
        final=window.final,
        feature_version=FEATURE_VERSION,
        layer_id=list(g.layers),
        layer_type=[layer.type for layer in topology.layers],
        node_features=Tensor.of(bounded(node_features.columns(g, len(g.layers)))),
        edge_source=e.source,
        edge_target=e.target,
        edge_features=Tensor.of(bounded(edge_features.columns(e, len(e.source)))),
        global_features=Tensor.of(bounded(global_features.columns(g, 1)[0])),
        health=g.health.tolist(),
        health_trend=g.health_trend.tolist(),
        problematic=[layer for layer, flag in zip(g.layers, g.problematic, strict=True) if flag],
        signals=window.signals,
        dormant_seeds=g.dormant_seeds.astype(int).tolist(),
        active_seeds=g.active_seeds.astype(int).tolist(),
        fossilized_seeds=g.fossilized_seeds.astype(int).tolist(),
        protected=[layer.protected for layer in topology.layers],
        learning_rate_scale=g.learning_rate_scale.tolist(),
        offers=[list(layer.blueprints) for layer in topology.layers],
        parameters=g.parameters,
        base_parameters=g.base_parameters,
        parameter_budget=topology.parameter_budget,
        steps_since_adaptation=g.steps_since_adaptation,
        cooldown_steps=topology.cooldown_steps,
        model_metrics={name: stats.mean for name, stats in sorted(window.model_metrics.items())},
    )


def edge_ends(graph: ModelGraph) -> npt.NDArray[np.int64]:
    """Return the node indices of each edge's source and target, int64 [2, edges].

    Args:
        graph: The graph.
    """
    return np.array([graph.edge_source, graph.edge_target], dtype=np.int64).reshape(2, -1)
