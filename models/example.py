"""An experience as the learner computes with it: checked once, its graph already tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tamiyo.models import actions
from tamiyo.models.batch import GraphBatch
from tamiyo.models.features import require_catalogue
from tamiyo.schemas.errors import PolicyError, RecordError
from tamiyo.schemas.learning import Experience

SUM_TOLERANCE = 1e-3  # float32 sums over thousands of actions
MAX_HEADS = 32
# Cumulative Poisson(1): how often a bootstrap resample of a long stream holds one record (Oza and Russell, 2001).
POISSON = np.cumsum([0.36787944, 0.36787944, 0.18393972, 0.06131324])


class ExperienceRejected(RecordError):
    """An experience that must not be learned from; `reason` is one word for counting."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Example:
    """One validated experience."""

    experience_id: str
    revision: int
    policy_version: int
    graph: GraphBatch
    """A batch of the one graph."""
    action: int
    log_propensity: float
    """Of the action under the behaviour distribution, nats."""
    choices: int
    """Legal actions; 1 means there was none but no_op."""
    reward: float
    value: float
    """What the policy that decided expected of the graph; the first guess of an advantage."""
    confidence: float
    success: bool | None
    complete: bool
    bootstrap: tuple[float, ...]
    """How often each reward head sees it."""

    @classmethod
    def of(cls, experience: Experience, kinds: Sequence[str], heads: int) -> Example:
        """Check an experience and make it tensors.

        Raises ExperienceRejected (feature_version, kinds, mask, action, propensity) where it does not fit this
        program's features, the policy's `kinds`, or contradicts itself.
        """
        mask, propensity = _checked(experience, kinds)
        try:
            graph = GraphBatch.of([experience.graph], kinds, [mask])
        except PolicyError as error:
            raise ExperienceRejected("graph", f"experience {experience.experience_id}: {error}") from error
        return cls(
            experience.experience_id,
            experience.revision,
            experience.policy_version,
            graph,
            experience.action_index,
            float(np.log(propensity)),
            int(mask.sum()),
            experience.reward,
            experience.value,
            experience.confidence,
            experience.success,
            experience.complete,
            bootstrap_weights(experience.experience_id, heads),
        )


def _checked(experience: Experience, kinds: Sequence[str]) -> tuple[np.ndarray[tuple[int], np.dtype[np.bool_]], float]:
    """Return (mask, probability of the action), or raise ExperienceRejected."""

    def refuse(reason: str, message: str) -> ExperienceRejected:
        return ExperienceRejected(reason, f"experience {experience.experience_id}: {message}")

    try:
        require_catalogue(experience.graph)
    except PolicyError as error:
        raise refuse("feature_version", str(error)) from error
    if tuple(experience.kinds) != tuple(kinds):
        raise refuse("kinds", f"its actions are {list(experience.kinds)}, the policy's are {list(kinds)}")
    size = actions.size(len(experience.graph.layer_id), kinds)
    mask = np.frombuffer(experience.mask, np.uint8)
    if mask.shape != (size,) or mask.max() > 1 or not mask[0]:
        raise refuse("mask", f"its mask is not {size} bytes of 0 and 1 with no_op legal")
    if experience.action_index >= size or not mask[experience.action_index]:
        raise refuse("action", f"its action {experience.action_index} is not among the legal ones of {size}")
    probabilities = experience.probabilities.numpy()
    if probabilities.shape != (size,):
        raise refuse("propensity", f"its probabilities are {list(probabilities.shape)}, expected [{size}]")
    if (
        probabilities.min() < 0
        or abs(float(probabilities.sum(dtype=np.float64)) - 1) > SUM_TOLERANCE
        or probabilities[mask == 0].any()
    ):
        raise refuse("propensity", "its probabilities are no distribution over the legal actions")
    propensity = float(probabilities[experience.action_index])
    if propensity <= 0:
        raise refuse("propensity", f"its action {experience.action_index} had probability 0")
    return mask.astype(np.bool_), propensity


def bootstrap_weights(experience_id: str, heads: int) -> tuple[float, ...]:
    """Return how often each of `heads` heads sees an experience: Poisson(1) cut at 4, from a hash of its id.

    Whenever and wherever it comes round again, a head sees it as often, so that the heads stay different.
    """
    if heads > MAX_HEADS:
        raise PolicyError(f"{heads} reward heads are more than the {MAX_HEADS} that a hash serves")
    digest = hashlib.blake2b(experience_id.encode(), digest_size=64, person=b"bootstrap").digest()
    uniform = np.frombuffer(digest, "<u2")[:heads] / 65536
    return tuple(float(count) for count in np.searchsorted(POISSON, uniform, side="right"))


def stack(examples: Sequence[Example]) -> tuple[GraphBatch, Tensor]:
    """Return the examples' graphs as one batch, and their actions as flat positions, int64 [G].

    The same as `GraphBatch.of` over all of them, without asking the heuristic again.
    """
    graphs = [example.graph for example in examples]
    nodes = np.cumsum([0, *(graph.x.shape[0] for graph in graphs)]).tolist()
    offsets = torch.tensor(np.cumsum([0, *(graph.mask.shape[0] for graph in graphs)]), dtype=torch.int64)
    rows = []
    for index, graph in enumerate(graphs):
        # A lone graph's no_op is row 0 and its layers' actions follow; among G graphs the first G rows are no_ops.
        per_node = (graph.action_row.shape[0] - 1) // max(1, graph.x.shape[0])
        inner = graph.action_row - 1 + len(graphs) + nodes[index] * per_node
        rows.append(torch.where(graph.action_row == 0, torch.full_like(inner, index), inner))
    batch = GraphBatch(
        x=torch.cat([graph.x for graph in graphs]),
        edge_index=torch.cat([graph.edge_index + nodes[index] for index, graph in enumerate(graphs)], dim=1),
        edge_attr=torch.cat([graph.edge_attr for graph in graphs]),
        globals=torch.cat([graph.globals for graph in graphs]),
        node_graph=torch.cat([graph.node_graph + index for index, graph in enumerate(graphs)]),
        prior=torch.cat([graph.prior for graph in graphs]),
        mask=torch.cat([graph.mask for graph in graphs]),
        action_graph=torch.cat([graph.action_graph + index for index, graph in enumerate(graphs)]),
        action_row=torch.cat(rows),
        offsets=offsets,
    )
    return batch, offsets[:-1] + torch.tensor([example.action for example in examples], dtype=torch.int64)
