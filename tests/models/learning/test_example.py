import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tamiyo.models.batch import GraphBatch
from tamiyo.models.features import FEATURE_VERSION
from tamiyo.models.learning.example import (
    MAX_HEADS,
    POISSON,
    Example,
    ExperienceRejected,
    bootstrap_weights,
    learned_reward,
    stack,
)
from tamiyo.schemas.errors import PolicyError
from tamiyo.schemas.record import Tensor
from tests.support.experiences import HEADS, KINDS, graph_of, make_example, make_experience


def test_what_an_example_contains():
    experience = make_experience(
        "a", action=3, legal=[0, 3, 4], probabilities=[0.5, 0, 0, 0.3, 0.2, 0, 0, 0, 0, 0, 0], revision=2,
        policy_version=7, reward=-0.25, value=0.1, confidence=0.6, success=None, complete=False,
    )  # fmt: skip
    example = Example.of(experience, KINDS, HEADS)
    assert example.experience_id == experience.experience_id
    assert (example.revision, example.policy_version, example.action, example.choices) == (2, 7, 3, 3)
    assert example.log_propensity == pytest.approx(math.log(0.3), abs=1e-6)
    assert (example.reward, example.value, example.confidence) == (-0.25, 0.1, 0.6)
    assert (example.success, example.complete) == (None, False)
    assert example.bootstrap == bootstrap_weights(experience.experience_id, HEADS)
    assert example.graph.graphs == 1
    assert example.graph.mask.nonzero().flatten().tolist() == [0, 3, 4]


UNIFORM = np.full(11, 1 / 11, np.float32)


def changed(**entries):
    found = UNIFORM.copy()
    for name, value in entries.items():
        found[int(name[1:])] = value
    return Tensor.of(found)


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("feature_version", {"graph": graph_of(2).model_copy(update={"feature_version": FEATURE_VERSION + 1})}),
        ("kinds", {"kinds": list(reversed(KINDS))}),
        ("kinds", {"kinds": list(KINDS[:-1])}),
        ("mask", {"mask": b"\1" * 10}),
        ("mask", {"mask": b"\1" * 10 + b"\2"}),
        ("mask", {"mask": b"\0" + b"\1" * 10}),
        ("mask", {"mask": b""}),
        ("action", {"action_index": 11}),
        ("action", {"legal": [0, 2]}),
        ("propensity", {"probabilities": Tensor.of(UNIFORM[:10])}),
        ("propensity", {"probabilities": Tensor.of(UNIFORM.reshape(1, 11))}),
        ("propensity", {"probabilities": Tensor.of(0.9 * UNIFORM)}),
        ("propensity", {"probabilities": changed(_2=-1 / 11, _3=3 / 11)}),
        ("propensity", {"probabilities": changed(_1=0.0, _2=2 / 11)}),
        ("propensity", {"mask": b"\1" * 10 + b"\0"}),
        ("worth", {"worth": math.nan}),
        ("worth", {"worth": -math.inf}),
        ("worth", {"worth": 50.1}),
        ("worth", {"worth": -1e308}),
    ],
)
def test_what_contradicts_itself_is_rejected_by_name(reason, fields):
    good = make_experience(legal=fields.pop("legal", None))
    experience = good.model_copy(update=fields)
    with pytest.raises(ExperienceRejected, match=good.experience_id) as rejected:
        Example.of(experience, KINDS, HEADS)
    assert rejected.value.reason == reason


def test_float32_rounding_over_many_actions_is_no_reason():
    # Ten thousand float32 probabilities do not sum to 1 to the last digit.
    example = make_example(probabilities=[float(p) for p in UNIFORM * (1 + 5e-4)])
    assert example.log_propensity == pytest.approx(-math.log(11), abs=1e-3)


# Reward


@pytest.mark.parametrize(
    ("worth", "learned"), [(None, 0.5), (0.0, 0.0), (-0.3, -0.3), (1.0, 1.0), (1.7, 1.0), (-2.5, -1.0), (50.0, 1.0)]
)
def test_the_worth_is_learned_where_it_is_known_clipped(worth, learned):
    experience = make_experience(reward=0.5, worth=worth)
    assert learned_reward(experience) == learned
    assert Example.of(experience, KINDS, HEADS).reward == learned


@pytest.mark.parametrize("worth", [math.nan, math.inf, -math.inf])
def test_a_worth_that_is_no_number_is_no_experience(worth):
    with pytest.raises(ValidationError, match="worth"):
        make_experience(worth=worth)


# Bootstrap


def test_bootstrap_counts_follow_from_the_id():
    assert bootstrap_weights("a", 5) == bootstrap_weights("a", 5)
    assert bootstrap_weights("a", 10)[:5] == bootstrap_weights("a", 5)
    assert bootstrap_weights("a", 10) != bootstrap_weights("b", 10)
    with pytest.raises(PolicyError, match="32 reward heads, got 33"):
        bootstrap_weights("a", MAX_HEADS + 1)


def test_bootstrap_counts_are_poisson():
    drawn = np.array([bootstrap_weights(str(number), MAX_HEADS) for number in range(1500)])
    shares = [(drawn == count).mean() for count in range(5)]
    # e^-1 / k!, and what is left at 4; 48,000 draws scatter by .002 at most.
    expected = [math.exp(-1) / math.factorial(count) for count in range(4)]
    assert shares[:4] == pytest.approx(expected, abs=0.01)
    assert shares[4] == pytest.approx(1 - sum(expected), abs=0.01)
    assert drawn.max() == 4
    assert POISSON.tolist() == pytest.approx(np.cumsum(expected).tolist(), abs=1e-7)
    assert np.corrcoef(drawn.T)[np.triu_indices(MAX_HEADS, 1)].max() < 0.15  # heads see different experiences


# Stacking


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_a_stack_is_the_batch_of_the_same_graphs(layers):
    examples = [make_example(index, layers=count) for index, count in enumerate(layers)]
    found, action = stack(examples)
    masks = [example.graph.mask.numpy() for example in examples]
    expected = GraphBatch.of([graph_of(count) for count in layers], KINDS, masks)
    for field in dataclasses.fields(GraphBatch):
        if field.name in ("edge_index", "edge_attr"):
            continue
        assert torch.equal(getattr(found, field.name), getattr(expected, field.name)), field.name
    # The edges are the same set; a stack has each graph's both directions together.
    assert edges(found) == edges(expected)
    assert action.tolist() == [int(start) + 1 for start in expected.offsets[:-1]]


def edges(batch):
    rows = torch.cat([batch.edge_index.T.float(), batch.edge_attr], dim=1)
    return sorted(tuple(row) for row in rows.tolist())
