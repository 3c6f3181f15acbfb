"""Many graphs as one set of tensors, and a softmax over each graph's own actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tamiyo.schemas.analysis import ModelGraph


@dataclass(frozen=True, slots=True)
class GraphBatch:
    """`graphs` graphs of together N nodes, E edges (each in both directions) and A actions."""

    x: Tensor
    """[N, node features] float32."""
    edge_index: Tensor
    """[2, E] int64: source, target."""
    edge_attr: Tensor
    """[E, 8] float32; the last one is 1 on reversed edges."""
    globals: Tensor
    """[graphs, global features] float32."""
    node_graph: Tensor
    """[N] int64: the graph of each node."""
    prior: Tensor
    """[A] float32: the heuristic's logits."""
    mask: Tensor
    """[A] bool: legal."""
    action_graph: Tensor
    """[A] int64: the graph of each action."""
    action_row: Tensor
    """[A] int64: where the action stands in cat([no_op a graph], [kinds a node] flattened)."""
    offsets: Tensor
    """[graphs + 1] int64: each graph's first action, and A; offsets[g] + action_index is a flat position."""

    @classmethod
    def of(
        cls, graphs: Sequence[ModelGraph], kinds: Sequence[str], masks: Sequence[npt.NDArray[np.bool_]]
    ) -> GraphBatch:
        """Stack graphs with the masks of their actions.

        Raises PolicyError where there are none, a mask has another length, or the features are another catalogue's.
        """
        raise NotImplementedError

    @property
    def graphs(self) -> int:
        """How many graphs there are."""
        return int(self.globals.shape[0])


def masked_log_softmax(logits: Tensor, mask: Tensor, action_graph: Tensor) -> Tensor:
    """Return log-probabilities [A], normalised within each graph; -inf where `mask` is False."""
    raise NotImplementedError


def graph_entropy(log_probabilities: Tensor, action_graph: Tensor, graphs: int) -> Tensor:
    """Return the entropy of each graph's distribution, nats, [graphs]; masked actions contribute 0."""
    raise NotImplementedError
