"""Several graphs as one set of tensors, and a softmax over each graph's own actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tamiyo.models.actions import size
from tamiyo.models.features import require_catalogue
from tamiyo.models.graph import edge_ends
from tamiyo.models.heuristic import baseline_logits
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.errors import PolicyError


@dataclass(frozen=True, slots=True)
class GraphBatch:
    """Several graphs with together N nodes, E edges (each in both directions) and A actions."""

    x: Tensor
    """[N, NODE_FEATURES] float32."""
    edge_index: Tensor
    """[2, E] int64: source, target."""
    edge_attr: Tensor
    """[E, EDGE_FEATURES] float32; the last feature is 1 on reversed edges."""
    globals: Tensor
    """[graphs, GLOBAL_FEATURES] float32."""
    node_graph: Tensor
    """[N] int64: the graph of each node."""
    prior: Tensor
    """[A] float32: the heuristic's logits."""
    mask: Tensor
    """[A] bool: which actions are legal."""
    action_graph: Tensor
    """[A] int64: the graph of each action."""
    action_row: Tensor
    """[A] int64: the row of each action's score in cat([graphs no_ops, N x kinds])."""
    offsets: Tensor
    """[graphs + 1] int64: each graph's first action, and A; offsets[g] + action_index is a flat position."""

    @classmethod
    def of(
        cls, graphs: Sequence[ModelGraph], kinds: Sequence[str], masks: Sequence[npt.NDArray[np.bool_]]
    ) -> GraphBatch:
        """Stack graphs with the masks of their actions.

        Args:
            graphs: At least one graph.
            kinds: Kinds of action at one layer.
            masks: For each graph, which entries of its action list are legal, bool [1 + nodes x kinds].

        Raises:
            PolicyError: There is no graph, a mask does not fit its graph, or another catalogue built the features.
        """
        if not graphs or len(graphs) != len(masks):
            raise PolicyError(f"expected graphs and a mask for each, got {len(graphs)} graphs and {len(masks)} masks")
        return combine([_single(graph, kinds, mask) for graph, mask in zip(graphs, masks, strict=True)])

    @property
    def graphs(self) -> int:
        """Number of graphs."""
        return int(self.globals.shape[0])


def _single(graph: ModelGraph, kinds: Sequence[str], mask: npt.NDArray[np.bool_]) -> GraphBatch:
    require_catalogue(graph)
    nodes = len(graph.layer_id)
    actions = size(nodes, kinds)
    if mask.shape != (actions,) or not mask[0]:
        raise PolicyError(
            f"expected a mask of {actions} actions with no_op legal for graph {graph.graph_id}, got shape {mask.shape}"
        )
    ends = edge_ends(graph)
    # Messages flow both ways: the best action at a layer depends on the layers after it too.
    features = graph.edge_features.numpy()
    attributes = np.concatenate([features, features])
    attributes[len(features) :, -1] = 1.0
    return GraphBatch(
        x=torch.from_numpy(graph.node_features.numpy().copy()),
        edge_index=torch.from_numpy(np.concatenate([ends, ends[::-1]], axis=1)),
        edge_attr=torch.from_numpy(attributes),
        globals=torch.from_numpy(graph.global_features.numpy().copy()).unsqueeze(0),
        node_graph=torch.zeros(nodes, dtype=torch.int64),
        prior=torch.from_numpy(baseline_logits(graph, kinds, mask)),
        mask=torch.from_numpy(mask.copy()),
        action_graph=torch.zeros(actions, dtype=torch.int64),
        action_row=torch.arange(actions),
        offsets=torch.tensor([0, actions]),
    )


def combine(graphs: Sequence[GraphBatch]) -> GraphBatch:
    """Return several graphs as one batch: `GraphBatch.of` over all of them, but with the heuristic's logits reused.

    Args:
        graphs: Batches of one graph each; at least one.
    """
    if len(graphs) == 1:
        return graphs[0]
    nodes, edges, actions = (
        torch.tensor([len(values) for values in column])
        for column in zip(*((graph.x, graph.edge_attr, graph.mask) for graph in graphs), strict=True)
    )
    numbers = torch.arange(len(graphs))
    action_graph = numbers.repeat_interleave(actions)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), actions.cumsum(0)])
    # The no_op of each graph has the row of its number; the other actions follow in their order.
    action_row = torch.arange(len(action_graph)) - action_graph + (len(graphs) - 1)
    action_row[offsets[:-1]] = numbers
    first_node = (nodes.cumsum(0) - nodes).repeat_interleave(edges)
    return GraphBatch(
        x=torch.cat([graph.x for graph in graphs]),
        edge_index=torch.cat([graph.edge_index for graph in graphs], dim=1) + first_node,
        edge_attr=torch.cat([graph.edge_attr for graph in graphs]),
        globals=torch.cat([graph.globals for graph in graphs]),
        node_graph=numbers.repeat_interleave(nodes),
        prior=torch.cat([graph.prior for graph in graphs]),
        mask=torch.cat([graph.mask for graph in graphs]),
        action_graph=action_graph,
        action_row=action_row,
        offsets=offsets,
    )


def masked_log_softmax(logits: Tensor, mask: Tensor, action_graph: Tensor) -> Tensor:
    """Return log-probabilities, normalised within each graph. Gradients at illegal actions are 0, never NaN.

    Args:
        logits: Float [A].
        mask: Bool [A]; every graph has a legal action, since no_op always is.
        action_graph: The graph of each action, int64 [A], ascending.

    Returns:
        Nats [A]; -inf where `mask` is False.

    Example:
        >>> legal = torch.tensor([True, True, False])
        >>> masked_log_softmax(torch.zeros(3), legal, torch.zeros(3, dtype=torch.int64)).exp().tolist()
        [0.5, 0.5, 0.0]
    """
    graphs = int(action_graph[-1]) + 1
    legal = logits.detach().masked_fill(~mask, -torch.inf)
    highest = legal.new_full((graphs,), -torch.inf).scatter_reduce(0, action_graph, legal, "amax")
    shifted = torch.where(mask, logits - highest[action_graph], 0.0)
    weights = torch.where(mask, shifted.exp(), 0.0)
    total = weights.new_zeros(graphs).index_add(0, action_graph, weights)
    return torch.where(mask, shifted - total.log()[action_graph], -torch.inf)


def graph_entropy(log_probabilities: Tensor, action_graph: Tensor, graphs: int) -> Tensor:
    """Return the entropy of each graph's distribution; masked actions contribute 0.

    Args:
        log_probabilities: From `masked_log_softmax`, [A].
        action_graph: The graph of each action, int64 [A].
        graphs: Number of graphs.

    Returns:
        Nats, [graphs].
    """
    finite = torch.where(torch.isneginf(log_probabilities), 0.0, log_probabilities)
    terms = torch.where(torch.isneginf(log_probabilities), 0.0, -finite.exp() * finite)
    return terms.new_zeros(graphs).index_add(0, action_graph, terms)
