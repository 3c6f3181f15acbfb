"""Samples a decision: the policy where its ensemble agrees, the baseline where it does not (SPIBB)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tamiyo.models.conformal import Calibration
from tamiyo.models.policy import BehaviourSettings, TamiyoPolicy
from tamiyo.schemas.adaptation import AdaptationDecision
from tamiyo.schemas.analysis import ModelGraph


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
    """
    raise NotImplementedError


def recompute(policy: TamiyoPolicy, graph: ModelGraph, decision: AdaptationDecision) -> npt.NDArray[np.float32]:
    """Return the distribution that `decision` was sampled from, [actions], within 1e-5 of what it logged.

    Raises PolicyError where the decision answers another graph, or its actions are not the policy's.
    """
    raise NotImplementedError
