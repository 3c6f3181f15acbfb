"""The network: message passing over layers, with heads for actions, the value and the reward with its uncertainty."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import linear

from tamiyo.models.actions import kinds
from tamiyo.models.batch import GraphBatch
from tamiyo.models.conformal import Calibration
from tamiyo.models.ensemble import RewardEnsemble
from tamiyo.models.features import EDGE_FEATURES, GLOBAL_FEATURES, NODE_FEATURES
from tamiyo.models.lazy_dynamo import without_dynamo

with without_dynamo():
    from torch_geometric.nn import AttentionalAggregation, GINEConv


class BehaviourSettings(BaseModel):
    """How probabilities follow from the network's output; part of the checkpoint, so that they can be recomputed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(1.0, gt=0, description="Of the softmax")
    exploration_bonus: float = Field(0.1, ge=0, description="Weight of an action's uncertainty in its logit")
    max_spread: float = Field(
        0.15, ge=0, description="Spread above which the policy is unsure of an action: the baseline decides (SPIBB)"
    )
    unsure_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the baseline's probability that an adaptation keeps of which the policy is unsure; with "
        "less than 1, where the policy knows nothing it rather changes nothing",
    )


class PolicyConfig(BaseModel):
    """Shape of the network: what a checkpoint needs to rebuild it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blueprints: tuple[str, ...] = Field(description="Blueprints that it can load, in the order of the action list")
    hidden: int = Field(128, ge=1, le=4096, description="Width of the embeddings")
    layers: int = Field(4, ge=1, le=64, description="Message-passing layers")
    heads: int = Field(5, ge=2, le=100, description="Reward heads in the ensemble")
    dropout: float = Field(0.1, ge=0, lt=1, description="In training mode only")
    heuristic_weight: float = Field(
        1.0, ge=0, le=1, description="Of the heuristic's logits in the policy's own; 0: the network decides alone"
    )
    prior_scale: float = Field(0.25, ge=0, description="Spread of an untrained ensemble, in units of reward")
    seed: int = Field(0, ge=0, le=2**62, description="Of the initial weights and the randomised priors")
    behaviour: BehaviourSettings = BehaviourSettings()


@dataclass(frozen=True, slots=True)
class PolicyOutput:
    """Output for G graphs with together N nodes and A actions."""

    logits: Tensor
    """[A], unmasked: the network's, plus the heuristic's weighted as the config states."""
    value: Tensor
    """[G]: expected sum of the rewards from the graph's decision to the end of the run."""
    ensemble: Tensor
    """[heads, A]: each head's prediction of the reward, its randomised prior included."""
    node_embeddings: Tensor
    """[N, hidden]."""
    global_embedding: Tensor
    """[G, hidden]."""
    action_graph: Tensor
    """[A] int64: the graph of each action."""

    @property
    def predicted_reward(self) -> Tensor:
        """Mean over the heads, [A]."""
        return self.ensemble.mean(dim=0)

    @property
    def spread(self) -> Tensor:
        """Population standard deviation over the heads, [A]; a Calibration converts it into an uncertainty."""
        return self.ensemble.std(dim=0, correction=0)


@dataclass(frozen=True, slots=True)
class OutputAtActions:
    """Output for G graphs with together A actions, the rewards at one action of each only."""

    logits: Tensor
    """[A], as in PolicyOutput."""
    value: Tensor
    """[G]."""
    rewards: Tensor
    """[heads, G]: each head's prediction at the graph's action, its randomised prior included."""


@dataclass(frozen=True, slots=True)
class Acted:
    """What the deciding part of the network makes of G graphs with together N nodes and A actions."""

    nodes: Tensor
    """Embeddings, [N, hidden]."""
    whole: Tensor
    """Embeddings of the graphs, [G, hidden]."""
    logits: Tensor
    """[A], unmasked."""


def _remove_generated_file() -> None:
    """Remove the code that torch_geometric writes into a temporary file in every process, imports and leaves there."""
    generated = sys.modules.get(GINEConv.propagate.__module__)
    source, compiled = getattr(generated, "__file__", None), getattr(generated, "__cached__", None)
    if source is not None and Path(source).parent == Path(tempfile.gettempdir()):
        for each in (source, compiled):
            if each is not None:
                Path(each).unlink(missing_ok=True)


class MessagePassing(nn.Module):
    """One GINE convolution with LayerNorm, ReLU, dropout and a residual connection.

    GINE: Hu et al., "Strategies for pre-training graph neural networks" (2020).
    """

    def __init__(self, hidden: int, dropout: float) -> None:
        """Make the layer.

        Args:
            hidden: Width of the node embeddings.
            dropout: Probability of dropping an element, in training mode only.
        """
        super().__init__()
        inner = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.convolution = GINEConv(inner, edge_dim=len(EDGE_FEATURES))
        _remove_generated_file()
        self.norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        """Pass one round of messages.

        What `convolution` computes, with fewer passes over its messages, which do not fit into a processor's cache.

        Args:
            x: Node embeddings, [N, hidden].
            edge_index: Source and target of each edge, int64 [2, E].
            edge_attr: Edge features, [E, EDGE_FEATURES].

        Returns:
            Node embeddings, [N, hidden].
        """
        source, target = edge_index.unbind()
        edges: nn.Linear = self.convolution.lin
        messages = (x + edges.bias).index_select(0, source).addmm_(edge_attr, edges.weight.t()).relu_()
        update: Tensor = self.convolution.nn(x.index_add(0, target, messages))
        added: Tensor = self.dropout(self.norm(update).relu_())
        return x + added


class TamiyoPolicy(nn.Module):
    """The policy network: the heuristic's logits plus a head that starts at zero, so untrained it is the heuristic.

    Nodes are encoded, exchange messages (GINE) and are pooled by attention (Li et al., "Graph matching networks", 2019)
    into one embedding of the graph, from which the heads read.

    Example:
        >>> import numpy as np
        >>> policy = TamiyoPolicy(PolicyConfig(blueprints=("low_rank",), hidden=8, layers=1)).eval()
        >>> batch = GraphBatch.of([graph], policy.kinds, [np.ones(1 + 4 * len(graph.layer_id), dtype=bool)])
        >>> output = policy(batch)
        >>> bool((output.logits == batch.prior).all()), output.ensemble.shape
        (True, torch.Size([5, 13]))
    """

    calibration: Calibration
    """Calibration of the ensemble's spread; the learner replaces it, and a checkpoint stores it."""

    def __init__(self, config: PolicyConfig) -> None:
        """Build the network. The same config gives the same weights; torch's global random state stays as it is.

        Args:
            config: Shape, blueprints and seed.
        """
        super().__init__()
        self.config = config
        self.kinds = kinds(config.blueprints)
        self.calibration = Calibration()
        hidden = config.hidden
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.encoder = nn.Linear(len(NODE_FEATURES), hidden)
            self.context = nn.Linear(len(GLOBAL_FEATURES), hidden)
            self.convolutions = nn.ModuleList(MessagePassing(hidden, config.dropout) for _ in range(config.layers))
            self.pooling = AttentionalAggregation(nn.Sequential(nn.Linear(hidden, 64), nn.ReLU(), nn.Linear(64, 1)))
            self.node_actions = _head(2 * hidden, 128, len(self.kinds), config.dropout)
            self.no_op = _head(hidden, 128, 1, config.dropout)
            self.value = _head(hidden, 64, 1, config.dropout)
            self.rewards = RewardEnsemble(
                heads=config.heads,
                hidden=hidden,
                inputs=(len(NODE_FEATURES), len(GLOBAL_FEATURES)),
                kinds=len(self.kinds),
                prior_scale=config.prior_scale,
            )

    def forward(self, batch: GraphBatch) -> PolicyOutput:
        """Score every action of every graph.

        Args:
            batch: Graphs whose masks were made for the policy's `kinds`.
        """
        return self.predict(batch, self.act(batch))

    def act(self, batch: GraphBatch) -> Acted:
        """Return what decides: the embeddings, and from them the logits.

        Args:
            batch: Graphs whose masks were made for the policy's `kinds`.
        """
        nodes = torch.relu(self.encoder(batch.x))
        for convolution in self.convolutions:
            nodes = convolution(nodes, batch.edge_index, batch.edge_attr)
        pooled = self.pooling(nodes, batch.node_graph, dim_size=batch.graphs)
        whole = torch.relu(pooled + self.context(batch.globals))
        scores = torch.cat([self.no_op(whole).flatten(), self._at_nodes(nodes, whole, batch).flatten()])
        return Acted(nodes, whole, logits=self.config.heuristic_weight * batch.prior + scores[batch.action_row])

    def _at_nodes(self, nodes: Tensor, whole: Tensor, batch: GraphBatch) -> Tensor:
        """Return the scores of the kinds of action at each node, [N, kinds]: of its embedding beside its graph's.

        The first layer's product with the graph's embedding is the same for all its nodes, so it is computed once.
        """
        first, others = cast("nn.Linear", self.node_actions[0]), self.node_actions[1:]
        of_nodes, of_whole = first.weight.chunk(2, dim=1)
        hidden = linear(whole, of_whole, first.bias).index_select(0, batch.node_graph).addmm_(nodes, of_nodes.t())
        scores: Tensor = others(hidden)
        return scores

    def predict_at(self, batch: GraphBatch, acted: Acted, action: Tensor, reward_prior: Tensor) -> OutputAtActions:
        """Return the output with the rewards of one action of each graph.

        Args:
            batch: The graphs.
            acted: What `act` returns for them.
            action: Positions of the actions in the batch's flat list, int64 [G].
            reward_prior: What `rewards.prior` has at them, [heads, G].
        """
        at_nodes = batch.action_row[action] - batch.graphs  # below 0 for no_op
        node = at_nodes.clamp(min=0) // len(self.kinds)
        kind = torch.where(at_nodes < 0, -1, at_nodes % len(self.kinds))
        placed = torch.cat([acted.nodes[node], acted.whole], dim=1)
        return OutputAtActions(
            logits=acted.logits,
            value=self.value(acted.whole).flatten(),
            rewards=self.rewards.at(placed, acted.whole, kind, reward_prior),
        )

    def predict(self, batch: GraphBatch, acted: Acted, reward_prior: Tensor | None = None) -> PolicyOutput:
        """Return the output with what only predicts: the value and the rewards.

        Args:
            batch: The graphs.
            acted: What `act` returns for them.
            reward_prior: What `rewards.prior` returns for them, if it is known.
        """
        return PolicyOutput(
            logits=acted.logits,
            value=self.value(acted.whole).flatten(),
            ensemble=self.rewards(acted.nodes, acted.whole, batch, reward_prior)[:, batch.action_row],
            node_embeddings=acted.nodes,
            global_embedding=acted.whole,
            action_graph=batch.action_graph,
        )


def _head(inputs: int, width: int, outputs: int, dropout: float) -> nn.Sequential:
    """Return a two-layer head whose output is 0 until it is trained."""
    last = nn.Linear(width, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout), last)
