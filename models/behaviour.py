"""Samples a decision: the policy where its ensemble agrees, the baseline where it does not (SPIBB).

After Laroche, Trichelair and Tachet des Combes (2019), with the ensemble's disagreement in place of visit counts: an
action the ensemble is unsure of keeps the baseline's probability, and the policy divides what is left among the rest.
The disagreement decides and not the calibrated half-width, which holds noise that no experience would take away.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tamiyo.models.batch import GraphBatch
from tamiyo.models.conformal import Calibration
from tamiyo.models.policy import BehaviourSettings, PolicyOutput, TamiyoPolicy
from tamiyo.schemas.adaptation import AdaptationDecision
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.errors import PolicyError

__all__ = ["BehaviourSettings", "Choice", "choose", "recompute"]

Array = npt.NDArray[np.float64]

FLOOR = 1e-6
"""Least probability of a legal action, so that no importance weight is ever infinite."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One sampled action and everything to record about it."""

    index: int
    probabilities: npt.NDArray[np.float32]
    """[actions]: exactly what was sampled from; 0 where illegal, above 0 where legal."""
    log_probability: float
    """Of the sampled action, nats."""
    entropy: float
    """Of the distribution, nats."""
    uncertainty: float
    """Calibrated half-width of the predicted reward, in [0, 1]; confidence is 1 minus this."""
    predicted_reward: float
    """Ensemble mean at the action, in [-1, 1]."""
    value: float
    method: str
    """policy or baseline: whose probability prevailed at the action."""
    temperature: float


def choose(
    policy: TamiyoPolicy,
    graph: ModelGraph,
    mask: npt.NDArray[np.bool_],
    *,
    seed: int,
    settings: BehaviourSettings | None = None,
    calibration: Calibration | None = None,
) -> Choice:
    """Sample one action; the same inputs give the same bytes. One graph a forward pass, dropout off.

    `settings` and `calibration` default to the policy's own, which its checkpoint carries: only then can the
    probabilities be recomputed from the policy version alone (the temperature stands in the decision).
    Raises PolicyError where the network's output is not finite, or the mask is not the graph's.
    """
    settings = settings or policy.config.behaviour
    output, prior = _evaluate(policy, graph, mask)
    spread = output.spread.numpy()
    uncertainty = (calibration or policy.calibration).half_width(spread)
    probabilities, confident = _distribution(output, prior, mask, spread, uncertainty, settings)
    cumulative = np.cumsum(probabilities, dtype=np.float64)
    index = int(np.searchsorted(cumulative, _uniform(seed) * cumulative[-1], side="right"))
    likely = probabilities[probabilities > 0].astype(np.float64)
    return Choice(
        index=index,
        probabilities=probabilities,
        log_probability=math.log(float(probabilities[index])),
        entropy=max(0.0, float(-(likely * np.log(likely)).sum())),
        uncertainty=float(uncertainty[index]),
        predicted_reward=min(max(float(output.predicted_reward[index]), -1.0), 1.0),
        value=float(output.value[0]),
        method="policy" if confident[index] else "baseline",
        temperature=settings.temperature,
    )


def recompute(policy: TamiyoPolicy, graph: ModelGraph, decision: AdaptationDecision) -> npt.NDArray[np.float32]:
    """Return the distribution that `decision` was sampled from, [actions], within 1e-5 of what it logged.

    Raises PolicyError where the decision answers another graph, or its actions are not the policy's.
    """
    if decision.graph_id != graph.graph_id or decision.layers != graph.layer_id:
        raise PolicyError(f"decision {decision.decision_id} answers graph {decision.graph_id}, not {graph.graph_id}")
    if tuple(decision.kinds) != policy.kinds:
        raise PolicyError(f"decision {decision.decision_id} chose among other kinds of action than this policy's")
    settings = policy.config.behaviour.model_copy(update={"temperature": decision.temperature})
    mask = np.frombuffer(decision.mask, np.uint8).astype(np.bool_)
    output, prior = _evaluate(policy, graph, mask)
    spread = output.spread.numpy()
    return _distribution(output, prior, mask, spread, policy.calibration.half_width(spread), settings)[0]


def _evaluate(policy: TamiyoPolicy, graph: ModelGraph, mask: npt.NDArray[np.bool_]) -> tuple[PolicyOutput, Array]:
    """The output and the heuristic's logits, of one graph alone: another batch would round differently."""
    batch = GraphBatch.of([graph], policy.kinds, [mask])
    training = policy.training
    if training:  # else not: to tell every module its mode takes a fifth of a decision
        policy.eval()
    try:
        with torch.inference_mode():
            output: PolicyOutput = policy(batch)
    finally:
        if training:
            policy.train()
    if not all(bool(torch.isfinite(part).all()) for part in (output.logits, output.value, output.ensemble)):
        raise PolicyError(f"the policy's output for graph {graph.graph_id} is not finite")
    return output, batch.prior.numpy().astype(np.float64)


def _distribution(
    output: PolicyOutput,
    prior: Array,
    mask: npt.NDArray[np.bool_],
    spread: npt.NDArray[np.float32],
    uncertainty: npt.NDArray[np.float32],
    settings: BehaviourSettings,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The distribution to sample from, and where the policy's part of it is."""
    probabilities = _softmax(prior / settings.temperature, mask)
    confident: npt.NDArray[np.bool_] = mask & (spread <= settings.max_spread)
    if confident.any():
        wishes = output.logits.numpy().astype(np.float64) + settings.exploration_bonus * uncertainty
        entrusted = probabilities[confident].sum()
        policy = _softmax(wishes / settings.temperature, confident)
        probabilities = np.where(confident, entrusted * policy, probabilities)
    floor = min(FLOOR, 1e-3 / mask.sum())  # never more than a thousandth of the mass in all
    probabilities = np.where(mask, np.maximum(probabilities, floor), 0.0)
    return (probabilities / probabilities.sum()).astype(np.float32), confident


def _softmax(logits: Array, mask: npt.NDArray[np.bool_]) -> Array:
    weights = np.where(mask, np.exp(np.where(mask, logits - logits[mask].max(), 0.0)), 0.0)
    return np.asarray(weights / weights.sum())


def _uniform(seed: int) -> float:
    """A number in [0, 1) that follows from the seed on any platform and any library's version."""
    digest = hashlib.blake2b(seed.to_bytes(16, "big"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53
