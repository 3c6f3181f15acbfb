"""A policy from the laboratory: its heads learn the rewards of an installation before its actor learns from them."""

import torch

from tamiyo.models.learning.hyperparameters import LearningSettings
from tamiyo.models.learning.learner import Learner
from tamiyo.models.learning.update import CRITICS
from tests.support.experiences import make_experience, small_policy

SETTINGS = LearningSettings(
    fresh_batch=4, minimum_batch=3, batch_size=8, minibatch_size=4, update_epochs=1, learning_rate=3e-3, warm_up=2
)


def learn(made):
    """One update, and which parameters it changed: of the critics, and of the rest."""
    before = {name: value.clone() for name, value in made.policy.named_parameters()}
    start = made.experiences
    for number in range(start, start + 4):
        made.take(make_experience(number, action=number % 5, reward=0.6 if number % 5 == 1 else -0.3))
    assert made.learn().accepted
    changed = {name for name, value in made.policy.named_parameters() if not torch.equal(value, before[name])}
    return {name for name in changed if name.startswith(CRITICS)}, {n for n in changed if not n.startswith(CRITICS)}


def test_first_only_the_critics_learn_then_everything():
    made = Learner(small_policy(heuristic_weight=0.0), SETTINGS)
    for _ in range(SETTINGS.warm_up):
        assert made.warming_up
        critics, others = learn(made)
        assert critics
        assert not others
        assert made.last.metrics["charts/critics_only"] == 1.0
    assert not made.warming_up
    _, others = learn(made)
    assert others
    assert made.last.metrics["charts/critics_only"] == 0.0


def test_a_policy_that_starts_as_the_heuristic_needs_no_warm_up():
    made = Learner(small_policy(), SETTINGS)
    assert not made.warming_up
    assert learn(made)[1]


def test_a_checkpoint_remembers_how_much_of_it_is_left():
    made = Learner(small_policy(heuristic_weight=0.0), SETTINGS)
    learn(made)
    assert Learner(made.policy, SETTINGS, version=1, updates=made.updates).warming_up
    learn(made)
    assert not Learner(made.policy, SETTINGS, version=2, updates=made.updates).warming_up
