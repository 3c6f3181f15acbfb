"""The network: message passing over layers, and heads for what to do, what it is worth and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from tamiyo.models.batch import GraphBatch
from tamiyo.models.conformal import Calibration


class BehaviourSettings(BaseModel):
    """How probabilities follow from the network's output; part of the checkpoint, so that they can be recomputed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(1.0, gt=0, description="Of the softmax")
    exploration_bonus: float = Field(0.1, ge=0, description="Added to an action's logit, times its uncertainty")
    max_spread: float = Field(0.15, ge=0, description="Where the ensemble disagrees more, the baseline acts (SPIBB)")


class PolicyConfig(BaseModel):
    """Shape of the network; what a checkpoint needs to build it again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blueprints: tuple[str, ...] = Field(description="In the order of the action list")
    hidden: int = Field(128, ge=1)
    layers: int = Field(4, ge=1, description="Message-passing layers")
    heads: int = Field(5, ge=2, description="Reward heads in the ensemble")
    dropout: float = Field(0.1, ge=0, lt=1, description="While learning only")
    prior_scale: float = Field(0.25, ge=0, description="Spread of an untrained ensemble, in units of reward")
    seed: int = Field(0, ge=0, description="Of the initial weights and the randomised priors")
    behaviour: BehaviourSettings = BehaviourSettings()


@dataclass(frozen=True, slots=True)
class PolicyOutput:
    """For G graphs with together N nodes and A actions."""

    logits: Tensor
    """[A], unmasked: the heuristic's plus the network's."""
    value: Tensor
    """[G]."""
    ensemble: Tensor
    """[heads, A]: each head's prediction of the reward, its randomised prior included."""
    node_embeddings: Tensor
    """[N, hidden]."""
    global_embedding: Tensor
    """[G, hidden]."""
    action_graph: Tensor
    """[A] int64."""


class TamiyoPolicy(nn.Module):
    """Logits = the heuristic's + a head whose last layer starts at zero: version 0 is the heuristic."""

    config: PolicyConfig
    kinds: tuple[str, ...]
    calibration: Calibration
    """Of the ensemble's spread; the learner replaces it, a checkpoint carries it."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, batch: GraphBatch) -> PolicyOutput:
        """Score every action of every graph."""
        raise NotImplementedError
