"""The loss of decoupled PPO over graphs. Nothing here steps, samples or stores.

The clipped objective is that of Schulman et al., "Proximal policy optimization algorithms" (2017), decoupled after
Hilton, Cobbe and Schulman, "Batch size-invariance for policy optimization" (2022). It involves three policies:
- behaviour: the distribution recorded in the experience; it may be many versions old, and a mixture (SPIBB);
- proximal: an exponential moving average of recent policies, which bounds how far a step may go;
- current: the policy that learns.
The importance weight proximal / behaviour corrects for how actions were sampled; the clipped ratio current / proximal
limits a step. The advantage is return - value: the rewards from the decision to the end of its run, as
`tamiyo.models.learning.credit` has them, less what the run was worth before it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tamiyo.models.batch import GraphBatch, graph_entropy, masked_log_softmax
from tamiyo.models.learning.hyperparameters import LearningSettings
from tamiyo.models.policy import OutputAtActions

MAX_LOG_RATIO = 20.0  # nats: an infinite ratio has a NaN gradient even if clipping or a weight of 0 removes it


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets and weights of a minibatch of G experiences; float32 [G] unless noted."""

    action: Tensor
    """int64: the sampled actions as positions in the batch's flat list."""
    behaviour_logprob: Tensor
    """Of the action under the behaviour policy, nats."""
    proximal_logprob: Tensor
    """Of the action under the proximal policy, nats."""
    advantage: Tensor
    """Normalised return - value."""
    returns: Tensor
    """Rewards from the decision to the end of its run: what the value head learns."""
    reward: Tensor
    """Of the decision alone, in [-1, 1]: what the reward heads learn."""
    weight: Tensor
    """Confidence of the reward x importance correction of replay; weighs every loss of the experience."""
    actor: Tensor
    """1 where the policy learns from the experience; 0 where there was no choice, or its policy is too old."""
    bootstrap: Tensor
    """[heads, G]: how often each reward head sees the experience."""

    def minibatch(self, inds: Tensor, action: Tensor) -> "Targets":
        """Return the targets of some of the experiences.

        Args:
            inds: Which experiences, int64 [g].
            action: Positions of their actions in the minibatch's own flat list, int64 [g].
        """
        return Targets(
            action=action,
            behaviour_logprob=self.behaviour_logprob[inds],
            proximal_logprob=self.proximal_logprob[inds],
            advantage=self.advantage[inds],
            returns=self.returns[inds],
            reward=self.reward[inds],
            weight=self.weight[inds],
            actor=self.actor[inds],
            bootstrap=self.bootstrap[:, inds],
        )


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalars of one minibatch; `total` carries the gradient of all of them."""

    total: Tensor
    policy: Tensor
    """Clipped policy loss."""
    value: Tensor
    """Mean squared error of the value head."""
    entropy: Tensor
    """Mean over the graphs with a choice, nats; 0 if there is none."""
    safety: Tensor
    """Penalty for uncertainty or entropy below its threshold."""
    reward: Tensor
    """Mean squared error of the reward heads, under their bootstrap weights."""
    approx_kl: Tensor
    """KL(proximal || current) at the sampled actions: mean((ratio - 1) - log ratio); Schulman, "Approximating KL
    divergence" (2020)."""
    clipfrac: Tensor
    """Share of ratios outside the clip range."""
    importance: Tensor
    """Mean importance weight, truncated."""


def importance_weight(proximal_logprob: Tensor, behaviour_logprob: Tensor, maximum: float) -> Tensor:
    """Return proximal / behaviour at the sampled actions.

    Args:
        proximal_logprob: Nats, [G].
        behaviour_logprob: Nats, [G].
        maximum: Largest weight.

    Example:
        >>> importance_weight(torch.tensor([0.0, 0.0]), torch.tensor([0.0, -5.0]), maximum=2.0).tolist()
        [1.0, 2.0]
    """
    return (proximal_logprob - behaviour_logprob).exp().clamp(max=maximum)


def normalise_advantage(advantage: Tensor, weight: Tensor, minimum_scale: float) -> Tensor:
    """Return (advantage - mean) / max(standard deviation, minimum scale), with both weighted; 0 without any weight.

    Args:
        advantage: [G].
        weight: >= 0, [G].
        minimum_scale: > 0; a smaller spread is not scaled up.
    """
    total = weight.sum()
    if total <= 0:
        return torch.zeros_like(advantage)
    mean = (weight * advantage).sum() / total
    variance = (weight * (advantage - mean).square()).sum() / total
    return (advantage - mean) / variance.sqrt().clamp(min=minimum_scale)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean; 0, with a gradient of 0, if the weights sum to 0.

    Args:
        values: [G].
        weight: >= 0, [G].
    """
    # An experience of weight 0 must not count, even if its value is infinite.
    kept = torch.where(weight > 0, values, torch.zeros_like(values))
    return (weight * kept).sum() / weight.sum().clamp(min=1e-8)


def choices(mask: Tensor, action_graph: Tensor, graphs: int) -> Tensor:
    """Return the number of legal actions of each graph, int64 [graphs].

    Args:
        mask: Bool [A].
        action_graph: The graph of each action, int64 [A].
        graphs: Number of graphs.
    """
    return torch.zeros(graphs, dtype=torch.int64).index_add_(0, action_graph, mask.to(torch.int64))


def divergence(before: Tensor, now: Tensor, action_graph: Tensor, graphs: int) -> Tensor:
    """Return the exact KL(before || now) of each graph's distribution, nats, [graphs].

    Args:
        before: Log-probabilities, [A].
        now: Log-probabilities with the same mask, [A].
        action_graph: The graph of each action, int64 [A].
        graphs: Number of graphs.
    """
    # A masked action is -inf in both and adds nothing; exp(-inf) * (-inf + inf) would be NaN.
    terms = torch.where(before > -torch.inf, before.exp() * (before - now), torch.zeros_like(before))
    return torch.zeros(graphs, dtype=terms.dtype).index_add_(0, action_graph, terms)


def ppo_loss(
    output: OutputAtActions,
    batch: GraphBatch,
    b: Targets,
    settings: LearningSettings,
    *,
    multiplier: float = 1.0,
    noise_floor: float = 0.0,
) -> Losses:
    """Return the losses of a minibatch.

    total = policy + vf_coef value - ent_coef entropy + safety + reward_coef reward. The policy loss is
    mean(rho max(-A ratio, -A clip(ratio))) with rho = min(proximal / behaviour, max_importance).

    Args:
        output: The policy's output for `batch` and the actions of `b`, with gradients.
        batch: The minibatch's graphs.
        b: Targets of the G experiences.
        settings: Coefficients and thresholds.
        multiplier: Of the calibration: uncertainty = multiplier x (spread + noise floor) is the half-width that a
            decision carries, to which the specification's safety term applies.
        noise_floor: Of the calibration.
    """
    log_probabilities = masked_log_softmax(output.logits, batch.mask, batch.action_graph)
    logratio = (log_probabilities[b.action] - b.proximal_logprob).clamp(max=MAX_LOG_RATIO)
    ratio = logratio.exp()

    actor = b.weight * b.actor
    rho = importance_weight(b.proximal_logprob, b.behaviour_logprob, settings.max_importance)
    pg_loss1 = -b.advantage * ratio
    pg_loss2 = -b.advantage * ratio.clamp(1 - settings.clip_coef, 1 + settings.clip_coef)
    pg_loss = weighted_mean(rho * torch.maximum(pg_loss1, pg_loss2), actor)

    v_loss = weighted_mean((output.value - b.returns).square(), b.weight)

    entropies = graph_entropy(log_probabilities, batch.action_graph, batch.graphs)
    # A graph in which only no_op is legal has no entropy.
    choosing = (choices(batch.mask, batch.action_graph, batch.graphs) > 1).to(entropies.dtype)
    entropy_loss = weighted_mean(entropies, choosing)

    errors = (output.rewards - b.reward).square()
    reward_loss = weighted_mean((b.bootstrap * errors).mean(0), b.weight)

    uncertainty = multiplier * (output.rewards.std(0, correction=0) + noise_floor)
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
