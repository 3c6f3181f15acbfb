"""How soon a learner improves, and whether any collapses: PPO on the bandit of graphs, one learner a seed."""

from __future__ import annotations

from dataclasses import dataclass

from tamiyo.evaluation.lab.bandit import BLUEPRINTS, GrowthBandit, expected_reward, learn_rounds, no_op_share
from tamiyo.models.learning.hyperparameters import LearningSettings
from tamiyo.models.learning.learner import Learner
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy

NODES = 6
EXPERIENCES = 1_000
INTERVAL = 50
JUDGED = range(10**6, 10**6 + 40)
"""Rounds on which a policy's expected reward is computed; none is learned from."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A learner after so many experiences."""

    seed: int
    experiences: int
    reward: float
    """Expected reward of a decision under the policy: exact, not sampled."""
    no_op: float
    """Mean probability of no_op, which is never best here."""


def learning_curve(seed: int) -> list[Stage]:
    """Return what becomes of a learner that starts from the heuristic, every 50 experiences.

    Args:
        seed: Of the bandit and of the learner.
    """
    bandit = GrowthBandit(seed, nodes=NODES, noise=0.1)
    policy = TamiyoPolicy(PolicyConfig(blueprints=BLUEPRINTS, hidden=16, layers=1, seed=seed))
    learner = Learner(policy, LearningSettings(seed=seed, learning_rate=2e-3, batch_size=64))
    found = [_stage(seed, 0, learner, bandit)]
    for start in range(0, EXPERIENCES, INTERVAL):
        for _ in learn_rounds(learner, bandit, range(start, start + INTERVAL)):
            pass
        found.append(_stage(seed, start + INTERVAL, learner, bandit))
    return found


def _stage(seed: int, experiences: int, learner: Learner, bandit: GrowthBandit) -> Stage:
    policy = learner.policy
    return Stage(seed, experiences, expected_reward(policy, bandit, JUDGED), no_op_share(policy, bandit, JUDGED))
