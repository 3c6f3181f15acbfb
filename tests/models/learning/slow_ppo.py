"""The losses of decoupled PPO as the specification and the paper write them: one number at a time, no torch.

Nothing here is shared with `tamiyo.models.learning.ppo`. Numbers are Python floats (float64), loops are over graphs
and actions.
"""

import math
import random
from dataclasses import dataclass, replace

import torch

from tamiyo.models.batch import GraphBatch
from tamiyo.models.learning.hyperparameters import LearningSettings
from tamiyo.models.learning.ppo import Targets, ppo_loss
from tamiyo.models.policy import OutputAtActions, PolicyOutput


@dataclass(frozen=True)
class Sample:
    """One experience: a graph's actions, the network's output for them, and the targets."""

    logits: list[float]
    mask: list[bool]
    action: int
    ensemble: list[list[float]]
    """[heads][actions]."""
    bootstrap: list[float]
    value: float = 0.0
    returns: float = 0.0
    reward: float = 0.0
    advantage: float = 0.0
    behaviour: float = 0.5
    """Probability of the action when it was sampled."""
    proximal: float = 0.5
    weight: float = 1.0
    actor: float = 1.0


def sample(logits, action=0, mask=None, heads=2, **fields):
    """A sample whose reward heads predict 0, unless `ensemble` is given."""
    mask = mask if mask is not None else [True] * len(logits)
    fields.setdefault("ensemble", [[0.0] * len(logits) for _ in range(heads)])
    fields.setdefault("bootstrap", [1.0] * heads)
    return Sample(list(logits), mask, action, **fields)


def random_samples(seed, graphs=6, heads=3):
    """Samples of 1 to 7 actions, some masked, some without a choice, a weight or an influence on the policy."""
    rng = random.Random(seed)
    found = []
    for _ in range(graphs):
        actions = rng.randint(1, 7)
        mask = [True, *(rng.random() < 0.7 for _ in range(actions - 1))]
        found.append(
            Sample(
                logits=[rng.gauss(0, 1.5) for _ in range(actions)],
                mask=mask,
                action=rng.choice([index for index, legal in enumerate(mask) if legal]),
                ensemble=[[rng.gauss(0, 0.1) for _ in range(actions)] for _ in range(heads)],
                bootstrap=[float(rng.randint(0, 3)) for _ in range(heads)],
                value=rng.gauss(0, 0.5),
                returns=rng.uniform(-2, 2),
                reward=rng.uniform(-1, 1),
                advantage=rng.gauss(0, 1),
                behaviour=rng.uniform(0.01, 1),
                proximal=rng.uniform(0.01, 1),
                weight=rng.choice([0.0, 0.3, 1.0]),
                actor=rng.choice([0.0, 1.0, 1.0]),
            )
        )
    return found


def distribution(each):
    """Probabilities of a sample's actions, 0 where masked."""
    highest = max(logit for logit, legal in zip(each.logits, each.mask, strict=True) if legal)
    weights = [math.exp(logit - highest) if legal else 0.0 for logit, legal in zip(each.logits, each.mask, strict=True)]
    return [weight / sum(weights) for weight in weights]


def entropy(probabilities):
    """In nats."""
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def mean(pairs):
    """Weighted mean of (value, weight) pairs; 0 without any weight."""
    pairs = [(value, weight) for value, weight in pairs if weight > 0]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else 0.0


def spread(predictions):
    """Population standard deviation."""
    centre = sum(predictions) / len(predictions)
    return math.sqrt(sum((prediction - centre) ** 2 for prediction in predictions) / len(predictions))


def slow_losses(samples, settings: LearningSettings, *, multiplier=1.0, noise_floor=0.0):
    """Every field of `Losses`, by name."""
    policy, value, entropies, unsure, shallow, rewards, kl, clipped, importance = ([] for _ in range(9))
    low, high = 1 - settings.clip_coef, 1 + settings.clip_coef
    for each in samples:
        probabilities = distribution(each)
        ratio = probabilities[each.action] / each.proximal
        rho = min(each.proximal / each.behaviour, settings.max_importance)
        surrogate = min(each.advantage * ratio, each.advantage * min(max(ratio, low), high))
        policy.append((-rho * surrogate, each.weight * each.actor))
        value.append(((each.value - each.returns) ** 2, each.weight))
        predictions = [head[each.action] for head in each.ensemble]
        squared = [
            count * (prediction - each.reward) ** 2
            for count, prediction in zip(each.bootstrap, predictions, strict=True)
        ]
        rewards.append((sum(squared) / len(squared), each.weight))
        unsure.append(max(0.0, settings.safe_uncertainty - multiplier * (spread(predictions) + noise_floor)))
        if sum(each.mask) > 1:
            entropies.append(entropy(probabilities))
            shallow.append(max(0.0, settings.safe_entropy - entropy(probabilities)))
        kl.append((ratio - 1 - math.log(ratio), each.actor))
        clipped.append((float(abs(ratio - 1) > settings.clip_coef), each.actor))
        importance.append((rho, each.actor))
    found = {
        "policy": mean(policy),
        "value": mean(value),
        "entropy": sum(entropies) / len(entropies) if entropies else 0.0,
        "safety": settings.safety_coef
        * (sum(unsure) / len(unsure) + (sum(shallow) / len(shallow) if shallow else 0.0)),
        "reward": mean(rewards),
        "approx_kl": mean(kl),
        "clipfrac": mean(clipped),
        "importance": mean(importance),
    }
    found["total"] = (
        found["policy"]
        + settings.vf_coef * found["value"]
        - settings.ent_coef * found["entropy"]
        + found["safety"]
        + settings.reward_coef * found["reward"]
    )
    return found


def tensors(samples, dtype=torch.float64):
    """(output, batch, targets) as `losses_of` takes them; logits, value and ensemble are leaves that want gradients."""
    sizes = [len(each.logits) for each in samples]
    offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    action_graph = torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(sizes))
    nothing = torch.zeros(0)
    batch = GraphBatch(
        x=nothing,
        edge_index=nothing,
        edge_attr=nothing,
        globals=torch.zeros(len(samples), 1),
        node_graph=nothing,
        prior=nothing,
        mask=torch.tensor([legal for each in samples for legal in each.mask]),
        action_graph=action_graph,
        action_row=nothing,
        offsets=offsets,
    )

    def leaf(values):
        return torch.tensor(values, dtype=dtype, requires_grad=True)

    heads = len(samples[0].ensemble)
    output = PolicyOutput(
        logits=leaf([logit for each in samples for logit in each.logits]),
        value=leaf([each.value for each in samples]),
        ensemble=leaf([[value for each in samples for value in each.ensemble[head]] for head in range(heads)]),
        node_embeddings=nothing,
        global_embedding=nothing,
        action_graph=action_graph,
    )

    def column(name):
        return torch.tensor([getattr(each, name) for each in samples], dtype=dtype)

    targets = Targets(
        action=offsets[:-1] + torch.tensor([each.action for each in samples]),
        behaviour_logprob=column("behaviour").log(),
        proximal_logprob=column("proximal").log(),
        advantage=column("advantage"),
        returns=column("returns"),
        reward=column("reward"),
        weight=column("weight"),
        actor=column("actor"),
        bootstrap=torch.tensor([each.bootstrap for each in samples], dtype=dtype).T,
    )
    return output, batch, targets


def losses_of(output, batch, targets, settings, **calibration):
    """`ppo_loss` of a policy's whole output."""
    at_actions = OutputAtActions(output.logits, output.value, output.ensemble[:, targets.action])
    return ppo_loss(at_actions, batch, targets, settings, **calibration)


def nudged(samples, part, position, step):
    """The samples with one number of `part` (logits, value, ensemble) changed, as it stands in the flat tensor."""
    sizes = [len(each.logits) for each in samples]
    if part == "value":
        changed, within = position, None
    else:
        head, flat = divmod(position, sum(sizes))
        changed = next(index for index in range(len(samples)) if flat < sum(sizes[: index + 1]))
        within = flat - sum(sizes[:changed])
    each = samples[changed]
    if part == "value":
        each = replace(each, value=each.value + step)
    elif part == "logits":
        each = replace(each, logits=[logit + step * (i == within) for i, logit in enumerate(each.logits)])
    else:
        heads = [
            [value + step * (h == head and i == within) for i, value in enumerate(row)]
            for h, row in enumerate(each.ensemble)
        ]
        each = replace(each, ensemble=heads)
    return [*samples[:changed], each, *samples[changed + 1 :]]
