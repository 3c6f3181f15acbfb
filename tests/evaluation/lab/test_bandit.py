"""The bandit, whose best decision is known, and a learner on it.

A policy learns within 100 experiences to make no adaptation if none pays (tests/system/test_specification.py). Choosing
the right layer takes more: over five seeds no effect above chance after 112 experiences, a clear one after 256.
"""

import math

import numpy as np
import pytest

from tamiyo.evaluation.lab.bandit import (
    BAD,
    BLUEPRINTS,
    GOOD,
    SLOW,
    GrowthBandit,
    expected_reward,
    learn_rounds,
    no_op_share,
)
from tamiyo.models.actions import to_action
from tamiyo.models.behaviour import choose
from tamiyo.models.learning.example import Example
from tamiyo.models.learning.hyperparameters import LearningSettings
from tamiyo.models.learning.learner import Learner
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy

HELD_OUT = range(10**6, 10**6 + 30)
NODES = 6


def learner(seed: int, rate: float) -> Learner:
    policy = TamiyoPolicy(PolicyConfig(blueprints=BLUEPRINTS, hidden=16, layers=1, seed=seed))
    return Learner(policy, LearningSettings(seed=seed, learning_rate=rate, batch_size=64))


def test_a_round_is_a_function_of_seed_and_index() -> None:
    one, other = GrowthBandit(3, nodes=NODES), GrowthBandit(3, nodes=NODES)
    assert one.round(5).graph == other.round(5).graph
    assert one.round(5).graph != one.round(6).graph
    assert one.round(5).graph != GrowthBandit(4, nodes=NODES).round(5).graph
    assert one.reward(5, 2) == other.reward(5, 2)
    assert one.params == {"seed": 3, "nodes": NODES, "noise": 0.2, "hint": 0.3, "good": GOOD}


def test_one_layer_should_grow_and_no_op_is_free() -> None:
    bandit = GrowthBandit(0, nodes=NODES, noise=0.0)
    context = bandit.round(1)
    layers = context.graph.layer_id
    correlation = context.graph.node_features.numpy()
    rewards = {}
    for index in np.flatnonzero(context.mask).tolist():
        action = to_action(index, layers, bandit.kinds)
        assert bandit.reward(1, index) == context.expected[index]
        rewards.setdefault((action.type, action.blueprint), {})[action.layer_id] = context.expected[index]
    assert rewards["no_op", None] == {None: 0.0}
    assert sorted(rewards["load_kernel", BLUEPRINTS[0]].values()) == [BAD] * (NODES - 1) + [GOOD]
    assert sorted(rewards["load_kernel", BLUEPRINTS[1]].values()) == [BAD] * (NODES - 1) + [GOOD / 2]
    assert set(rewards["optimize_parameters", None].values()) == {SLOW}
    assert correlation.shape[0] == NODES


def test_rewards_scatter_around_their_mean_and_stay_in_bounds() -> None:
    bandit = GrowthBandit(0, nodes=NODES, noise=0.2)
    rewards = np.array([bandit.reward(index, 0) for index in range(300)])
    assert abs(rewards.mean()) < 3 * 0.2 / math.sqrt(300)
    assert rewards.std() == pytest.approx(0.2, rel=0.15)
    assert max(abs(GrowthBandit(0, nodes=2, noise=9.0).reward(index, 0)) for index in range(20)) == 1.0


def test_the_learner_accepts_its_experiences() -> None:
    bandit = GrowthBandit(0, nodes=NODES)
    made = learner(0, 3e-4)
    context = bandit.round(0)
    choice = choose(made.policy, context.graph, context.mask, seed=1)
    example = Example.of(bandit.experience(0, choice, 0), made.policy.kinds, made.policy.config.heads)
    assert example.action == choice.index
    assert example.log_propensity == pytest.approx(choice.log_probability, abs=1e-6)


def test_the_expected_reward_is_that_of_the_distribution() -> None:
    bandit = GrowthBandit(0, nodes=NODES)
    policy = learner(0, 3e-4).policy
    context = bandit.round(7)
    shares = choose(policy, context.graph, context.mask, seed=99).probabilities.astype(np.float64)
    assert expected_reward(policy, bandit, [7]) == pytest.approx(float(shares @ context.expected))
    assert no_op_share(policy, bandit, [7]) == pytest.approx(shares[0])


@pytest.mark.parametrize("seed", [1, 2])
def test_learning_beats_the_heuristic_chance_and_no_op_and_does_not_collapse(seed: int) -> None:
    bandit = GrowthBandit(seed, nodes=NODES, noise=0.1)
    made = learner(seed, 2e-3)
    heuristic = expected_reward(made.policy, bandit, HELD_OUT)
    for _ in learn_rounds(made, bandit, range(256)):
        pass
    learned = expected_reward(made.policy, bandit, HELD_OUT)
    contexts = [bandit.round(index) for index in HELD_OUT]
    chance = float(np.mean([each.expected[each.mask].mean() for each in contexts]))
    best = float(np.mean([each.expected[each.mask].max() for each in contexts]))
    assert chance < 0 < heuristic < learned < best
    assert learned > heuristic + 0.05
    assert no_op_share(made.policy, bandit, HELD_OUT) < 0.5
