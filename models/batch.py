"""Several graphs as one set of tensors, and a softmax over each graph's own actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tamiyo.models.actions import size
from tamiyo.models.features import require_catalogue
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
        for graph, mask in zip(graphs, masks, strict=True):
            require_catalogue(graph)
            if mask.shape != (size(len(graph.layer_id), kinds),) or not mask[0]:
                raise PolicyError(
                    f"expected a mask of {size(len(graph.layer_id), kinds)} actions with no_op legal for graph "
                    f"{graph.graph_id}, got shape {mask.shape}"
                )
        nodes = np.array([len(graph.layer_id) for graph in graphs])
        first = np.concatenate([[0], np.cumsum(nodes)])
        ends = [
            np.array([graph.edge_source, graph.edge_target], dtype=np.int64).reshape(2, -1) + start
            for graph, start in zip(graphs, first, strict=False)
        ]
        edges = np.concatenate(ends, axis=1)
        attributes = np.concatenate([graph.edge_features.numpy() for graph in graphs])
        # Messages flow both ways: the best action at a layer depends on the layers after it too.
        backward = attributes.copy()
        backward[:, -1] = 1.0
        length = len(kinds)
        lengths = 1 + nodes * length
        rows = [
            np.concatenate([[number], len(graphs) + np.arange(start * length, end * length)])
            for number, (start, end) in enumerate(pairwise(first.tolist()))
        ]
        prior = [baseline_logits(graph, kinds, mask) for graph, mask in zip(graphs, masks, strict=True)]
        return cls(
            x=torch.from_numpy(np.concatenate([graph.node_features.numpy() for graph in graphs])),
            edge_index=torch.from_numpy(np.concatenate([edges, edges[::-1]], axis=1)),
            edge_attr=torch.from_numpy(np.concatenate([attributes, backward])),
            globals=torch.from_numpy(np.stack([graph.global_features.numpy() for graph in graphs])),
            node_graph=torch.from_numpy(np.repeat(np.arange(len(graphs)), nodes)),
            prior=torch.from_numpy(np.concatenate(prior)),
            mask=torch.from_numpy(np.concatenate(masks)),
            action_graph=torch.from_numpy(np.repeat(np.arange(len(graphs)), lengths)),
            action_row=torch.from_numpy(np.concatenate(rows)),
            offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])),
        )

    @property
    def graphs(self) -> int:
        """Number of graphs."""
        return int(self.globals.shape[0])


def combine(graphs: Sequence[GraphBatch]) -> GraphBatch:
    """Return several graphs as one batch: `GraphBatch.of` over all of them, but with the heuristic's logits reused.

    Args:
        graphs: Batches of one graph each; at least one.
    """
    nodes = np.cumsum([0, *(graph.x.shape[0] for graph in graphs)]).tolist()
    offsets = torch.tensor(np.cumsum([0, *(graph.mask.shape[0] for graph in graphs)]), dtype=torch.int64)
    rows = []
    for index, graph in enumerate(graphs):
        # In a batch of one graph row 0 is no_op and the layers' actions follow; with G graphs the first G rows are.
        per_node = (graph.action_row.shape[0] - 1) // max(1, graph.x.shape[0])
        inner = graph.action_row - 1 + len(graphs) + nodes[index] * per_node
        rows.append(torch.where(graph.action_row == 0, torch.full_like(inner, index), inner))
    return GraphBatch(
        x=torch.cat([graph.x for graph in graphs]),
        edge_index=torch.cat([graph.edge_index + nodes[index] for index, graph in enumerate(graphs)], dim=1),
        edge_attr=torch.cat([graph.edge_attr for graph in graphs]),
        globals=torch.cat([graph.globals for graph in graphs]),
        node_graph=torch.cat([graph.node_graph + index for index, graph in enumerate(graphs)]),
        prior=torch.cat([graph.prior for graph in graphs]),
        mask=torch.cat([graph.mask for graph in graphs]),
        action_graph=torch.cat([graph.action_graph + index for index, graph in enumerate(graphs)]),
        action_row=torch.cat(rows),
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
