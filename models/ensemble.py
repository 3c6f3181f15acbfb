"""Reward heads that agree only where they have seen data.

Randomised priors, after Osband, Aslanides and Cassirer, "Randomized prior functions for deep reinforcement learning"
(2018): each head is a small network plus a fixed random function of the raw features. Training fits network + prior to
the rewards seen; elsewhere the priors, which are never trained, keep the heads apart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tamiyo.models.batch import GraphBatch

WIDTH = 64
PRIOR_WIDTH = 32


class RewardEnsemble(nn.Module):
    """Several predictions of the reward of every action; all heads are computed in one matrix product."""

    prior_node_first: Tensor
    prior_node_last: Tensor
    prior_no_op_first: Tensor
    prior_no_op_last: Tensor

    def __init__(self, *, heads: int, hidden: int, inputs: tuple[int, int], kinds: int, prior_scale: float) -> None:
        """Draw the weights and the priors from torch's random state.

        Args:
            heads: Number of predictions, >= 2.
            hidden: Width of the embeddings that the heads read.
            inputs: Widths of the node and the global features, which the priors read.
            kinds: Kinds of action at one layer.
            prior_scale: Standard deviation over the untrained heads, in units of reward.
        """
        super().__init__()
        nodes, whole = inputs
        self.prior_scale = prior_scale
        self.node_first = nn.Parameter(_uniform(heads, 2 * hidden, WIDTH))
        self.node_first_bias = nn.Parameter(torch.zeros(heads, 1, WIDTH))
        self.node_last = nn.Parameter(torch.zeros(heads, WIDTH, kinds))
        self.node_last_bias = nn.Parameter(torch.zeros(heads, 1, kinds))
        self.no_op_first = nn.Parameter(_uniform(heads, hidden, WIDTH))
        self.no_op_first_bias = nn.Parameter(torch.zeros(heads, 1, WIDTH))
        self.no_op_last = nn.Parameter(torch.zeros(heads, WIDTH, 1))
        self.no_op_last_bias = nn.Parameter(torch.zeros(heads, 1, 1))
        for name, shape in (
            ("prior_node_first", (heads, nodes + whole, PRIOR_WIDTH)),
            ("prior_node_last", (heads, PRIOR_WIDTH, kinds)),
            ("prior_no_op_first", (heads, whole, PRIOR_WIDTH)),
            ("prior_no_op_last", (heads, PRIOR_WIDTH, 1)),
        ):
            self.register_buffer(name, torch.randn(shape) / math.sqrt(shape[1]))

    def forward(self, nodes: Tensor, whole: Tensor, batch: GraphBatch, prior: Tensor | None = None) -> Tensor:
        """Predict the reward of every action.

        Args:
            nodes: Embedding of each node, [N, hidden]; the heads read it beside that of its graph.
            whole: Embedding of each graph, [graphs, hidden].
            batch: The graphs, whose raw features the priors read.
            prior: What `prior` returns for them, if it is known.

        Returns:
            [heads, graphs + N x kinds]: no_op of each graph, then every kind at every node.
        """
        of_nodes, of_whole = self.node_first.chunk(2, dim=1)
        of_graphs = whole @ of_whole + self.node_first_bias
        hidden = torch.relu(nodes @ of_nodes + of_graphs.index_select(1, batch.node_graph))
        at_nodes = hidden @ self.node_last + self.node_last_bias
        no_op = torch.relu(whole @ self.no_op_first + self.no_op_first_bias) @ self.no_op_last + self.no_op_last_bias
        learned = torch.cat([no_op.flatten(1), at_nodes.flatten(1)], dim=1)
        return learned + (self.prior(batch) if prior is None else prior)

    def at(self, placed: Tensor, whole: Tensor, kind: Tensor, prior: Tensor) -> Tensor:
        """Predict the reward of one action of each graph: all that a gradient step needs, at a fraction of the cost.

        Args:
            placed: Embedding of the action's node beside that of its graph, [graphs, 2 hidden]; any for no_op.
            whole: Embedding of each graph, [graphs, hidden].
            kind: The action's kind, int64 [graphs]; -1 for no_op.
            prior: What `prior` has at the action, [heads, graphs].

        Returns:
            [heads, graphs].
        """
        chosen = kind.clamp(min=0)
        last = self.node_last[:, :, chosen].transpose(1, 2)
        hidden = torch.relu(placed @ self.node_first + self.node_first_bias)
        at_node = (hidden * last).sum(dim=2) + self.node_last_bias[:, 0, chosen]
        no_op = torch.relu(whole @ self.no_op_first + self.no_op_first_bias) @ self.no_op_last + self.no_op_last_bias
        return torch.where(kind < 0, no_op.squeeze(2), at_node) + prior

    @torch.no_grad()
    def prior(self, batch: GraphBatch) -> Tensor:
        """Return the fixed part of the predictions.

        It is standardised over the heads, with mean 0 and standard deviation `prior_scale` at every action: an
        untrained ensemble predicts 0 and is equally uncertain about every action.

        Args:
            batch: The graphs.

        Returns:
            [heads, graphs + N x kinds], without gradients.
        """
        raw = torch.cat([batch.x, batch.globals[batch.node_graph]], dim=1)
        at_nodes = torch.tanh(raw @ self.prior_node_first) @ self.prior_node_last
        no_op = torch.tanh(batch.globals @ self.prior_no_op_first) @ self.prior_no_op_last
        both = torch.cat([no_op.flatten(1), at_nodes.flatten(1)], dim=1)
        centred = both - both.mean(dim=0)
        return self.prior_scale * centred / both.std(dim=0, correction=0).clamp_min(1e-6)


def _uniform(heads: int, inputs: int, outputs: int) -> Tensor:
    """Return weights as nn.Linear initialises them, drawn separately for every head."""
    bound = 1 / math.sqrt(inputs)
    return torch.empty(heads, inputs, outputs).uniform_(-bound, bound)
