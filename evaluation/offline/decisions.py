"""Logged decisions as arrays: the legal actions, their logged probabilities and those of the evaluated policies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tamiyo.evaluation.offline.policies import TargetPolicy
from tamiyo.models.learning.example import ExperienceRejected, checked, learned_reward
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.learning import Experience

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LoggedDecision:
    """One decision of the log with A legal actions."""

    run_id: str
    graph: ModelGraph
    kinds: tuple[str, ...]
    """Kinds of action at one layer."""
    actions: npt.NDArray[np.int64]
    """[A]: positions of the legal actions in the graph's action list."""
    logged: int
    """Position of the logged action in `actions`."""
    behaviour: Array
    """[A]: the recorded distribution, from which the logged action was sampled."""
    targets: tuple[Array, ...]
    """For each evaluated policy, its distribution, [A]."""
    reward: float
    """What the learner maximises, in [-1, 1]."""

    def weight(self, position: int) -> float:
        """Return the importance weight of the logged action under an evaluated policy."""
        return float(self.targets[position][self.logged] / self.behaviour[self.logged])


def logged_decisions(
    experiences: Iterable[Experience],
    policies: Sequence[TargetPolicy],
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[list[LoggedDecision], Counter[str]]:
    """Return the decisions that all policies can be evaluated on, and how many are left out, by reason.

    Args:
        experiences: One for each decision.
        policies: The policies to evaluate.
        advance: Called with the number of experiences processed since the last call.

    Raises:
        PolicyError: A policy's output is not finite. Leaving out such a decision would flatter the policy.
    """
    found: list[LoggedDecision] = []
    left_out: Counter[str] = Counter()
    for experience in experiences:
        try:
            found.append(_decision(experience, policies))
        except ExperienceRejected as error:
            left_out[error.reason] += 1
        advance(1)
    return found, left_out


def _decision(experience: Experience, policies: Sequence[TargetPolicy]) -> LoggedDecision:
    for policy in policies:
        checked(experience, policy.kinds or experience.kinds)
    mask, _ = checked(experience, experience.kinds)
    legal = np.flatnonzero(mask)
    return LoggedDecision(
        run_id=experience.run_id,
        graph=experience.graph,
        kinds=tuple(experience.kinds),
        actions=legal,
        logged=int(np.searchsorted(legal, experience.action_index)),
        behaviour=experience.probabilities.numpy()[legal].astype(np.float64),
        targets=tuple(policy.probabilities(experience, mask)[legal].astype(np.float64) for policy in policies),
        reward=learned_reward(experience),
    )
