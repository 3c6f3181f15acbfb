"""An experience prepared for learning: validated once, its graph already as tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tamiyo.models import actions
from tamiyo.models.batch import GraphBatch, combine
from tamiyo.models.features import require_catalogue
from tamiyo.schemas.errors import PolicyError, RecordError
from tamiyo.schemas.learning import Experience

MAX_WORTH = 50.0  # nats: a loss divided by 5e21; beyond it a worth is an error, not a very good adaptation
SUM_TOLERANCE = 1e-3  # of probabilities: float32 sums over thousands of actions
MAX_HEADS = 32  # 64 bytes of hash, two per head
# Cumulative Poisson(1): how often a bootstrap resample of a long stream holds one record (Oza and Russell, 2001).
POISSON = np.cumsum([0.36787944, 0.36787944, 0.18393972, 0.06131324])


class ExperienceRejected(RecordError):
    """An experience that must not be learned from."""

    def __init__(self, reason: str, message: str) -> None:
        """Reject an experience.

        Args:
            reason: One word for counting: feature_version, kinds, mask, action, propensity, worth or graph.
            message: The reason in full.
        """
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Example:
    """One validated experience."""

    experience_id: str
    run_id: str
    step: int
    """Optimiser steps of the run when the decision was made: the order of a run's decisions."""
    final: bool
    """Whether it is the run's last decision."""
    revision: int
    """Revision of its reward; a higher one replaces it."""
    policy_version: int
    """Version of the policy that decided."""
    graph: GraphBatch
    """A batch of one graph."""
    action: int
    """Position of the executed action in the graph's action list."""
    log_propensity: float
    """Of the action under the behaviour distribution, nats."""
    choices: int
    """Number of legal actions; 1 means no_op alone."""
    reward: float
    """In [-1, 1]: the worth, clipped, where it is known, else the weighted sum; see `learned_reward`."""
    value: float
    """What the deciding policy expected of the graph: the rewards from this decision to the end of the run."""
    confidence: float
    """Of the reward, in [0, 1]."""
    success: bool | None
    """Whether the executed adaptation improved the run; None where nothing was executed."""
    complete: bool
    """Whether no later revision of the reward will come."""
    bootstrap: tuple[float, ...]
    """[heads]: how often each reward head sees the experience."""

    @classmethod
    def of(cls, experience: Experience, kinds: Sequence[str], heads: int) -> Example:
        """Validate an experience and convert it to tensors.

        Args:
            experience: A record from the experience topic.
            kinds: Kinds of action of the policy that learns.
            heads: Reward heads of that policy, at most MAX_HEADS.

        Raises:
            ExperienceRejected: The experience does not fit this program's features or the policy's kinds of action, or
                contradicts itself.

        Example:
            >>> example = Example.of(experience, experience.kinds, heads=5)
            >>> example.action, example.choices, len(example.bootstrap)
            (1, 11, 5)
        """
        mask, propensity = checked(experience, kinds)
        try:
            graph = GraphBatch.of([experience.graph], kinds, [mask])
        except PolicyError as error:
            raise ExperienceRejected("graph", f"experience {experience.experience_id}: {error}") from error
        return cls(
            experience.experience_id,
            experience.run_id,
            experience.graph.step,
            experience.graph.final,
            experience.revision,
            experience.policy_version,
            graph,
            experience.action_index,
            float(np.log(propensity)),
            int(mask.sum()),
            learned_reward(experience),
            experience.value,
            experience.confidence,
            experience.success,
            experience.complete,
            bootstrap_weights(experience.experience_id, heads),
        )


def learned_reward(experience: Experience) -> float:
    """Return what the learner maximises, in [-1, 1].

    The worth, where it is known: the worths of a run add up to what it gained, so a higher sum is a lower final loss.
    It is clipped to the range of the reward, for which predictions and their calibration are made: a loss reduced to
    37 % counts as much as any larger gain. Where it is unknown, the reward: the squashed sum of the components.

    Args:
        experience: A record from the experience topic.

    Example:
        >>> learned_reward(experience), learned_reward(experience.model_copy(update={"worth": -1.5}))
        (0.5, -1.0)
    """
    return experience.reward if experience.worth is None else max(-1.0, min(1.0, experience.worth))


def checked(experience: Experience, kinds: Sequence[str]) -> tuple[np.ndarray[tuple[int], np.dtype[np.bool_]], float]:
    """Return the mask of an experience and the probability of its action.

    Args:
        experience: A record from the experience topic.
        kinds: Kinds of action of the policy that learns, or is evaluated.

    Returns:
        Legal actions, bool [1 + nodes x kinds], and the recorded probability of the sampled action.

    Raises:
        ExperienceRejected: The experience does not fit this program's features or these kinds of action, or contradicts
            itself.
    """

    def refuse(reason: str, message: str) -> ExperienceRejected:
        return ExperienceRejected(reason, f"experience {experience.experience_id}: {message}")

    try:
        require_catalogue(experience.graph)
    except PolicyError as error:
        raise refuse("feature_version", str(error)) from error
    if tuple(experience.kinds) != tuple(kinds):
        raise refuse("kinds", f"expected the policy's actions {list(kinds)}, got {list(experience.kinds)}")
    size = actions.size(len(experience.graph.layer_id), kinds)
    mask = np.frombuffer(experience.mask, np.uint8)
    if mask.shape != (size,) or mask.max() > 1 or not mask[0]:
        raise refuse("mask", f"expected a mask of {size} bytes, 0 or 1, with no_op legal")
    if experience.action_index >= size or not mask[experience.action_index]:
        raise refuse("action", f"expected a legal action of {size}, got {experience.action_index}")
    probabilities = experience.probabilities.numpy()
    if probabilities.shape != (size,):
        raise refuse("propensity", f"expected probabilities of shape [{size}], got {list(probabilities.shape)}")
    if (
        probabilities.min() < 0
        or abs(float(probabilities.sum(dtype=np.float64)) - 1) > SUM_TOLERANCE
        or probabilities[mask == 0].any()
    ):
        raise refuse("propensity", "expected probabilities that are a distribution over the legal actions")
    propensity = float(probabilities[experience.action_index])
    if propensity <= 0:
        raise refuse("propensity", f"expected a sampled action, but action {experience.action_index} has probability 0")
    if experience.worth is not None and not abs(experience.worth) <= MAX_WORTH:  # so that NaN is refused too
        raise refuse("worth", f"expected a worth of at most {MAX_WORTH:g} nats, got {experience.worth}")
    return mask.astype(np.bool_), propensity


def bootstrap_weights(experience_id: str, heads: int) -> tuple[float, ...]:
    """Return how often each reward head sees an experience: Poisson(1), at most 4, from a hash of its id.

    The online bootstrap of Oza and Russell (2001). A head sees the same experience equally often on every draw from
    replay and after every restart, which keeps the heads different.

    Args:
        experience_id: The experience's id.
        heads: Number of heads, at most MAX_HEADS.

    Raises:
        PolicyError: There are more heads than one hash can serve.

    Example:
        >>> bootstrap_weights("decision-1", heads=4) == bootstrap_weights("decision-1", heads=5)[:4]
        True
    """
    if heads > MAX_HEADS:
        raise PolicyError(f"expected at most {MAX_HEADS} reward heads, got {heads}")
    digest = hashlib.blake2b(experience_id.encode(), digest_size=64, person=b"bootstrap").digest()
    uniform = np.frombuffer(digest, "<u2")[:heads] / 65536
    return tuple(float(count) for count in np.searchsorted(POISSON, uniform, side="right"))


def stack(examples: Sequence[Example]) -> tuple[GraphBatch, Tensor]:
    """Combine examples into one batch.

    Args:
        examples: At least one example.

    Returns:
        The batch of G graphs, and the position of each example's action in the batch's flat list, int64 [G].
    """
    batch = combine([example.graph for example in examples])
    return batch, batch.offsets[:-1] + torch.tensor([example.action for example in examples], dtype=torch.int64)
