"""Examples, and an updater's settings, updates and state for tests."""

import copy

import numpy as np
import torch

from tamiyo.models.learning.hyperparameters import LearningSettings
from tamiyo.models.learning.update import CRITICS
from tests.support.experiences import make_example

COUNT = 24
EXAMPLES = [
    make_example(number, action=number % 5, reward=0.6 if number % 5 == 1 else -0.3, layers=2 + number % 2)
    for number in range(COUNT)
]


def settings(**fields):
    return LearningSettings(**{"learning_rate": 3e-3, "minibatch_size": 8, "update_epochs": 2, **fields})


def update(updater, examples=EXAMPLES, *, version=0, seed=0, corrections=None, check=None):
    corrections = np.ones(len(examples)) if corrections is None else corrections
    returns = [each.reward for each in examples]
    rng = np.random.default_rng(seed)
    return updater.update(examples, corrections, returns, version=version, rng=rng, check=check)


def everything(updater):
    """A copy of all that an update changes."""
    return copy.deepcopy({"policy": updater.policy.state_dict(), **updater.state()})


def same(one, other):
    """Bit-equal, however nested."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def actors(policy):
    """What decides; the rest only predicts."""
    return {name: value.clone() for name, value in policy.named_parameters() if not name.startswith(CRITICS)}
