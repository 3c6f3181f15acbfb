"""Decoupled PPO over graphs: the loss, and nothing that steps, samples or stores.

Three policies appear in it (Hilton, Cobbe and Schulman, "Batch size-invariance for policy optimization", 2022):
- behaviour: whose probabilities are in the experience; it may be many versions old, and a mixture (SPIBB);
- proximal: an exponential moving average of recent policies, from which a step may go only so far;
- the policy that learns.
The importance weight proximal / behaviour corrects what was sampled; the clipped ratio policy / proximal limits a step.
A decision's reward is already its long-term worth, so its advantage is reward - value and nothing is bootstrapped.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tamiyo.models.batch import GraphBatch, graph_entropy, masked_log_softmax
from tamiyo.models.hyperparameters import LearningSettings
from tamiyo.models.policy import PolicyOutput

# An infinite ratio has a NaN for its gradient even where clipping or a weight of 0 keeps it out of the loss.
MAX_LOG_RATIO = 20.0


@dataclass(frozen=True, slots=True)
class Targets:
    """What a minibatch of G experiences is learned from; float32 [G] unless said otherwise."""

    action: Tensor
    """int64: the sampled actions as positions in the batch's flat list."""
    behaviour_logprob: Tensor
    proximal_logprob: Tensor
    advantage: Tensor
    """Normalised."""
    reward: Tensor
    weight: Tensor
    """Confidence x correction for how replay chose; weighs every loss of the experience."""
    actor: Tensor
    """1 where the policy learns from it; 0 where there was no choice, or its policy is too old."""
    bootstrap: Tensor
    """[heads, G]: how often each reward head sees the experience."""

    def minibatch(self, inds: Tensor, action: Tensor) -> "Targets":
        """Return the targets of the experiences `inds`, whose actions stand at `action` in their own batch."""
        return Targets(
            action=action,
            behaviour_logprob=self.behaviour_logprob[inds],
            proximal_logprob=self.proximal_logprob[inds],
            advantage=self.advantage[inds],
            reward=self.reward[inds],
            weight=self.weight[inds],
            actor=self.actor[inds],
            bootstrap=self.bootstrap[:, inds],
        )


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalars of one minibatch; `total` carries the gradient of them all."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    """Mean over the graphs with a choice, nats; 0 where there is none."""
    safety: Tensor
    reward: Tensor
    approx_kl: Tensor
    """Of the sampled actions, proximal against now: mean((ratio - 1) - log ratio); Schulman, "Approximating KL"."""
    clipfrac: Tensor
    """Share of ratios outside the clip range."""
    importance: Tensor
    """Mean importance weight, truncated."""


def importance_weight(proximal_logprob: Tensor, behaviour_logprob: Tensor, maximum: float) -> Tensor:
    """Return proximal / behaviour at the sampled actions, truncated at `maximum`."""
    return (proximal_logprob - behaviour_logprob).exp().clamp(max=maximum)


def normalise_advantage(advantage: Tensor, weight: Tensor, minimum_scale: float) -> Tensor:
    """Return (advantage - mean) / max(standard deviation, `minimum_scale`), both under `weight`; 0 without weight."""
    total = weight.sum()
    if total <= 0:
        return torch.zeros_like(advantage)
    mean = (weight * advantage).sum() / total
    variance = (weight * (advantage - mean).square()).sum() / total
    return (advantage - mean) / variance.sqrt().clamp(min=minimum_scale)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of `values` under `weight`; 0, with a gradient of 0, where the weights sum to 0."""
    # An experience of weight 0 must not speak, not even with an infinity.
    kept = torch.where(weight > 0, values, torch.zeros_like(values))
    return (weight * kept).sum() / weight.sum().clamp(min=1e-8)


def choices(mask: Tensor, action_graph: Tensor, graphs: int) -> Tensor:
    """Return how many actions are legal in each graph, int64 [graphs]."""
    return torch.zeros(graphs, dtype=torch.int64).index_add_(0, action_graph, mask.to(torch.int64))


def divergence(before: Tensor, now: Tensor, action_graph: Tensor, graphs: int) -> Tensor:
    """Return KL(before || now) of each graph's distribution from log-probabilities [A], exactly, nats, [graphs]."""
    # Where both are -inf the action is masked and adds nothing; exp(-inf) * (-inf + inf) would be NaN.
    terms = torch.where(before > -torch.inf, before.exp() * (before - now), torch.zeros_like(before))
    return torch.zeros(graphs, dtype=terms.dtype).index_add_(0, action_graph, terms)


def ppo_loss(
    output: PolicyOutput,
    batch: GraphBatch,
    b: Targets,
    settings: LearningSettings,
    *,
    multiplier: float = 1.0,
    noise_floor: float = 0.0,
) -> Losses:
    """Return the losses of a minibatch.

    `multiplier` and `noise_floor` are the calibration's: half-width = multiplier x (spread + noise floor) is the
    uncertainty that a decision carries, and so the one that the specification's safety term is about.
    """
    log_probabilities = masked_log_softmax(output.logits, batch.mask, batch.action_graph)
    logratio = (log_probabilities[b.action] - b.proximal_logprob).clamp(max=MAX_LOG_RATIO)
    ratio = logratio.exp()

    actor = b.weight * b.actor
    rho = importance_weight(b.proximal_logprob, b.behaviour_logprob, settings.max_importance)
    pg_loss1 = -b.advantage * ratio
    pg_loss2 = -b.advantage * ratio.clamp(1 - settings.clip_coef, 1 + settings.clip_coef)
    pg_loss = weighted_mean(rho * torch.maximum(pg_loss1, pg_loss2), actor)

    v_loss = weighted_mean((output.value - b.reward).square(), b.weight)

    entropies = graph_entropy(log_probabilities, batch.action_graph, batch.graphs)
    # A graph where only no_op is legal has no entropy to keep.
    choosing = (choices(batch.mask, batch.action_graph, batch.graphs) > 1).to(entropies.dtype)
    entropy_loss = weighted_mean(entropies, choosing)

    predictions = output.ensemble[:, b.action]
    errors = (predictions - b.reward).square()
    reward_loss = weighted_mean((b.bootstrap * errors).mean(0), b.weight)

    uncertainty = multiplier * (predictions.std(0, correction=0) + noise_floor)
    safety_loss = settings.safety_coef * (
        torch.relu(settings.safe_uncertainty - uncertainty).mean()
        + weighted_mean(torch.relu(settings.safe_entropy - entropies), choosing)
    )

    loss = (
        pg_loss
        + settings.vf_coef * v_loss
        - settings.ent_coef * entropy_loss
        + safety_loss
        + settings.reward_coef * reward_loss
    )
    with torch.no_grad():
        acting = b.actor
        approx_kl = weighted_mean((ratio - 1) - logratio, acting)
        clipfrac = weighted_mean(((ratio - 1).abs() > settings.clip_coef).to(ratio.dtype), acting)
        importance = weighted_mean(rho, acting)
    return Losses(loss, pg_loss, v_loss, entropy_loss, safety_loss, reward_loss, approx_kl, clipfrac, importance)
