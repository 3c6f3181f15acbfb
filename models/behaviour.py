"""Samples a decision: from the policy where its ensemble agrees, from the baseline elsewhere (SPIBB).

Laroche, Trichelair and Tachet des Combes, "Safe policy improvement with baseline bootstrapping" (2019), with the
ensemble's spread in place of visit counts: an action that the ensemble is unsure of keeps the baseline's probability,
and the policy divides the remaining mass among the other actions. With `unsure_share` below 1, an adaptation that the
ensemble is unsure of keeps that share only: then the baseline is, for the rest, to change nothing. The criterion is the
spread and not the calibrated half-width, because the half-width includes noise that no amount of experience removes.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tamiyo.models.batch import GraphBatch, masked_log_softmax
from tamiyo.models.conformal import Calibration
from tamiyo.models.inference import evaluate, spread_of
from tamiyo.models.policy import BehaviourSettings, PolicyOutput, TamiyoPolicy
from tamiyo.schemas.adaptation import AdaptationDecision
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.errors import PolicyError

__all__ = ["BehaviourSettings", "Choice", "choose", "distribution", "distributions", "recompute"]

Array = npt.NDArray[np.float64]

FLOOR = 1e-6
"""Smallest probability of a legal action, so that every importance weight is finite."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One sampled action with everything that its decision records."""

    index: int
    """Position in the graph's action list."""
    probabilities: npt.NDArray[np.float32]
    """[actions]: exactly the distribution sampled from; 0 where illegal, above 0 where legal."""
    log_probability: float
    """Of the sampled action, nats."""
    entropy: float
    """Of the distribution, nats."""
    uncertainty: float
    """Calibrated half-width of the predicted reward, in [0, 1]; confidence is 1 minus this."""
    predicted_reward: float
    """Ensemble mean at the action, in [-1, 1]."""
    value: float
    """The value head's estimate of the graph's reward."""
    method: str
    """"policy" or "baseline": which of them set the action's probability."""
    temperature: float
    """Of the softmax."""


def choose(
    policy: TamiyoPolicy,
    graph: ModelGraph,
    mask: npt.NDArray[np.bool_],
    *,
    seed: int,
    settings: BehaviourSettings | None = None,
    calibration: Calibration | None = None,
) -> Choice:
    """Sample one action. Pure: the same inputs give the same bytes.

    Args:
        policy: The policy; evaluated on this graph alone, with dropout off.
        graph: The graph to decide on.
        mask: Legal actions, bool [1 + nodes x kinds], from `legal_actions`.
        seed: The random draw, 0 <= seed < 2**128; decisions use a hash of their id.
        settings: Temperature and limits; by default those of the policy's checkpoint. Only with the default can
            `recompute` reproduce the probabilities, except for the temperature, which the decision records.
        calibration: By default the policy's own.

    Raises:
        PolicyError: The network's output is not finite, or the mask does not fit the graph.

    Example:
        >>> from tamiyo.models.masks import MaskLimits, legal_actions
        >>> from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
        >>> policy = TamiyoPolicy(PolicyConfig(blueprints=("low_rank",), hidden=8, layers=1))
        >>> mask = legal_actions(graph, policy.kinds, limits=MaskLimits())
        >>> choice = choose(policy, graph, mask, seed=7)
        >>> choice.index, choice.method, round(float(choice.probabilities.sum()), 3)
        (0, 'baseline', 1.0)
    """
    settings = settings or policy.config.behaviour
    output, prior = _evaluate(policy, graph, mask)
    spread = spread_of(output.ensemble)
    uncertainty = (calibration or policy.calibration).half_width(spread)
    probabilities, confident = _distribution(output, prior, mask, spread, uncertainty, settings)
    index = draw(probabilities, seed)
    return Choice(
        index=index,
        probabilities=probabilities,
        log_probability=math.log(float(probabilities[index])),
        entropy=entropy_of(probabilities),
        uncertainty=float(uncertainty[index]),
        predicted_reward=min(max(float(output.predicted_reward[index]), -1.0), 1.0),
        value=float(output.value[0]),
        method="policy" if confident[index] else "baseline",
        temperature=settings.temperature,
    )


def distribution(
    policy: TamiyoPolicy,
    graph: ModelGraph,
    mask: npt.NDArray[np.bool_],
    *,
    settings: BehaviourSettings | None = None,
) -> npt.NDArray[np.float32]:
    """Return the distribution that `choose` samples from.

    Args:
        policy: The policy; evaluated on this graph alone, with dropout off.
        graph: The graph to decide on.
        mask: Legal actions, bool [1 + nodes x kinds].
        settings: Temperature and limits; by default those of the policy's checkpoint.

    Returns:
        Probabilities [actions]; 0 where illegal, above 0 where legal.

    Raises:
        PolicyError: The network's output is not finite, or the mask does not fit the graph.

    Example:
        >>> from tamiyo.models.masks import MaskLimits, legal_actions
        >>> from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
        >>> policy = TamiyoPolicy(PolicyConfig(blueprints=("low_rank",), hidden=8, layers=1))
        >>> mask = legal_actions(graph, policy.kinds, limits=MaskLimits())
        >>> bool((distribution(policy, graph, mask) == choose(policy, graph, mask, seed=7).probabilities).all())
        True
    """
    output, prior = _evaluate(policy, graph, mask)
    spread = spread_of(output.ensemble)
    uncertainty = policy.calibration.half_width(spread)
    return _distribution(output, prior, mask, spread, uncertainty, settings or policy.config.behaviour)[0]


def recompute(policy: TamiyoPolicy, graph: ModelGraph, decision: AdaptationDecision) -> npt.NDArray[np.float32]:
    """Return the distribution that a decision was sampled from.

    Args:
        policy: The policy version that the decision names.
        graph: The graph that the decision names.
        decision: A recorded decision.

    Returns:
        Probabilities [actions], within 1e-5 of the recorded ones.

    Raises:
        PolicyError: The decision is about another graph, or its kinds of action are not the policy's.
    """
    if decision.graph_id != graph.graph_id or decision.layers != graph.layer_id:
        raise PolicyError(
            f"expected a decision on graph {graph.graph_id}, but decision {decision.decision_id} is on graph "
            f"{decision.graph_id}"
        )
    if tuple(decision.kinds) != policy.kinds:
        raise PolicyError(
            f"expected a decision among {', '.join(policy.kinds)}, but decision {decision.decision_id} was made among "
            f"{', '.join(decision.kinds)}: use the policy version that made it"
        )
    settings = policy.config.behaviour.model_copy(update={"temperature": decision.temperature})
    mask = np.frombuffer(decision.mask, np.uint8).astype(np.bool_)
    return distribution(policy, graph, mask, settings=settings)


def distributions(
    policy: TamiyoPolicy, batch: GraphBatch
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return what a policy would sample from at many graphs, in one forward pass.

    Rounding depends on the batch: the probabilities are those of `choose` within 1e-5, not bit by bit.

    Args:
        policy: The policy, in eval mode.
        batch: The graphs, with A actions in total.

    Returns:
        Probabilities [A]; the ensemble's mean rewards [A]; the values [graphs]. Not finite where the network's are not.
    """
    settings = policy.config.behaviour
    with torch.inference_mode():
        output: PolicyOutput = policy(batch)
        spread = output.spread
        mask, graph = batch.mask, batch.action_graph

        def total(values: torch.Tensor) -> torch.Tensor:
            """Sum within each graph, spread over its actions again."""
            return values.new_zeros(batch.graphs).index_add(0, graph, values)[graph]

        probabilities = masked_log_softmax(batch.prior.double() / settings.temperature, mask, graph).exp()
        confident = mask & (spread <= settings.max_spread)
        no_op = torch.zeros_like(mask)
        no_op[batch.offsets[:-1]] = True
        unsure = mask & ~confident & ~no_op
        released = (1.0 - settings.unsure_share) * total(torch.where(unsure, probabilities, 0.0))
        probabilities = torch.where(unsure, settings.unsure_share * probabilities, probabilities)
        sure_of_no_op = total((no_op & confident).double()) > 0
        probabilities = torch.where(no_op & ~sure_of_no_op, probabilities + released, probabilities)
        half_width = torch.from_numpy(policy.calibration.half_width(spread.numpy()).astype(np.float64))
        preferences = (output.logits.double() + settings.exploration_bonus * half_width) / settings.temperature
        # A graph without a confident action keeps the baseline: its no_op only keeps the softmax defined.
        known = total(confident.double()) > 0
        own = masked_log_softmax(preferences, torch.where(known, confident, mask), graph).exp()
        entrusted = total(torch.where(confident, probabilities, 0.0)) + torch.where(sure_of_no_op, released, 0.0)
        probabilities = torch.where(confident, entrusted * own, probabilities)
        floor = (1e-3 / total(mask.double())).clamp(max=FLOOR)
        probabilities = torch.where(mask, torch.maximum(probabilities, floor), 0.0)
        probabilities = probabilities / total(probabilities)
        # A comparison with NaN is False, so an action with a spread that is not finite keeps the baseline.
        probabilities = torch.where(torch.isfinite(output.logits) & torch.isfinite(spread), probabilities, torch.nan)
        return probabilities.numpy(), output.predicted_reward.double().numpy(), output.value.double().numpy()


def _evaluate(policy: TamiyoPolicy, graph: ModelGraph, mask: npt.NDArray[np.bool_]) -> tuple[PolicyOutput, Array]:
    """Return the output and the heuristic's logits for one graph alone: a larger batch would round differently."""
    batch = GraphBatch.of([graph], policy.kinds, [mask])
    output = evaluate(policy, batch)
    if not all(np.isfinite(part.numpy()).all() for part in (output.logits, output.value, output.ensemble)):
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
    """Return the distribution to sample from, and the actions whose probability the policy sets."""
    probabilities = _softmax(prior / settings.temperature, mask)
    confident: npt.NDArray[np.bool_] = mask & (spread <= settings.max_spread)
    unsure = ~confident
    unsure[0] = False
    released = (1.0 - settings.unsure_share) * probabilities[unsure].sum()
    probabilities[unsure] *= settings.unsure_share
    if not confident[0]:
        probabilities[0] += released
        released = 0.0
    if confident.any():
        preferences = output.logits.numpy().astype(np.float64) + settings.exploration_bonus * uncertainty
        entrusted = probabilities[confident].sum() + released
        policy = _softmax(preferences / settings.temperature, confident)
        probabilities = np.where(confident, entrusted * policy, probabilities)
    floor = min(FLOOR, 1e-3 / mask.sum())  # at most a thousandth of the mass in total
    probabilities = np.where(mask, np.maximum(probabilities, floor), 0.0)
    return (probabilities / probabilities.sum()).astype(np.float32), confident


def _softmax(logits: Array, mask: npt.NDArray[np.bool_]) -> Array:
    weights = np.where(mask, np.exp(np.where(mask, logits - logits[mask].max(), 0.0)), 0.0)
    return np.asarray(weights / weights.sum())


def draw(probabilities: npt.NDArray[np.float32], seed: int) -> int:
    """Return the position of a sampled action; the same arguments give the same one on every platform.

    Args:
        probabilities: [actions]: the distribution; it need not sum to 1 exactly.
        seed: The random draw, 0 <= seed < 2**128.
    """
    cumulative = np.cumsum(probabilities, dtype=np.float64)
    return int(np.searchsorted(cumulative, _uniform(seed) * cumulative[-1], side="right"))


def entropy_of(probabilities: npt.NDArray[np.floating[Any]]) -> float:
    """Return the entropy of a distribution, nats.

    Args:
        probabilities: [actions]; 0 where illegal.
    """
    likely = probabilities[probabilities > 0].astype(np.float64)
    return max(0.0, float(-(likely * np.log(likely)).sum()))


def _uniform(seed: int) -> float:
    """Return a number in [0, 1) that depends on the seed alone, on every platform and with every library version."""
    digest = hashlib.blake2b(seed.to_bytes(16, "big"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53
