"""Credit over the run, and that a learner uses it."""

import numpy as np
import pytest

from tamiyo.models.credit import RunCredit
from tamiyo.models.hyperparameters import LearningSettings
from tamiyo.models.learner import Learner
from tests.support.experiences import graph_of, make_example, make_experience, small_policy


def decisions(rewards, *, values=None, run="run-1", final=True):
    """One decision after the other, 50 steps apart."""
    values = values or [0.0] * len(rewards)
    return [
        make_example(
            f"{run}-{index}",
            run_id=run,
            graph=graph_of(2).model_copy(update={"step": 50 * index, "final": final and index == len(rewards) - 1}),
            reward=reward,
            value=value,
        )
        for index, (reward, value) in enumerate(zip(rewards, values, strict=True))
    ]


def credit_of(examples, **settings):
    credit = RunCredit(**settings)
    for each in examples:
        credit.add(each)
    return [credit.of(each) for each in examples]


def test_a_decision_is_credited_with_all_that_followed_it():
    assert credit_of(decisions([0.0, 0.5, 0.0, -0.2]), gae_lambda=1.0) == pytest.approx([0.3, 0.3, -0.2, -0.2])


def test_a_pump_is_credited_with_what_it_leaves():
    pump = credit_of(decisions([0.3, -0.3, 0.3, -0.3, 0.3]), gae_lambda=1.0)
    once = credit_of(decisions([0.3, 0.0, 0.0, 0.0, 0.0]), gae_lambda=1.0)
    assert pump[0] == pytest.approx(once[0]) == pytest.approx(0.3)


def test_returns_are_those_of_generalised_advantages():
    # Schulman et al. (2016), equation 16: A = sum of (gamma lambda)^l delta, with delta = r + gamma V' - V.
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 7)).clip(-1, 1).tolist()
    gamma, lambda_ = 0.9, 0.8
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, [*values[1:], 0.0], strict=True)]
    advantages = [
        sum((gamma * lambda_) ** (later - k) * deltas[later] for later in range(k, len(deltas)))
        for k in range(len(deltas))
    ]
    found = credit_of(decisions(rewards, values=values), gamma=gamma, gae_lambda=lambda_)
    assert np.subtract(found, values) == pytest.approx(advantages)


def test_without_a_future_it_is_a_bandit():
    rewards = [0.1, -0.4, 0.3]
    assert credit_of(decisions(rewards, values=[0.5, 0.5, 0.5]), gamma=0.0) == pytest.approx(rewards)


def test_the_last_known_decision_of_a_run_that_goes_on_counts_for_its_reward():
    *_, last = credit_of(decisions([0.0, 0.2], values=[0.4, 0.4], final=False))
    assert last - 0.4 == pytest.approx(0.2)
    *_, last = credit_of(decisions([0.0, 0.2], values=[0.4, 0.4], final=True))
    assert last == pytest.approx(0.2)


def test_order_of_arrival_does_not_matter_and_the_newest_revision_counts():
    examples = decisions([0.0, 0.5, 0.1])
    revised = make_example("run-1-2", run_id="run-1", graph=examples[2].graph and graph_of(2), reward=0.1)
    credit = RunCredit(gae_lambda=1.0)
    for each in reversed(examples):
        credit.add(each)
    assert credit.of(examples[0]) == pytest.approx(0.6)
    credit.add(revised)  # revision 0 again: ignored
    assert credit.of(examples[0]) == pytest.approx(0.6)
    better = decisions([0.0, 0.5, 0.9])[2]
    credit.add(type(better)(**{name: getattr(better, name) for name in better.__slots__} | {"revision": 1}))
    assert credit.of(examples[0]) == pytest.approx(1.4)


def test_runs_are_apart_and_the_oldest_is_dropped():
    first, second = decisions([0.5, 0.5], run="a"), decisions([-0.5, -0.5, 0.0], run="b")
    credit = RunCredit(gae_lambda=1.0, capacity=4)
    for each in (*first, *second):
        credit.add(each)
    assert credit.of(second[0]) == pytest.approx(-1.0)
    assert credit.of(first[0]) == 0.5  # its own reward is all that is known
    assert len(credit) == 3


def investment(number, first, second):
    """A run of two decisions: action 1 first earns nothing, and lets action 1 earn .8 afterwards; action 2 earns .1."""
    rewards = [0.1 if first == 2 else 0.0, 0.8 if first == second == 1 else 0.0]
    return [
        make_experience(
            f"{number}-{index}",
            action=action,
            legal=[0, 1, 2],
            run_id=f"run-{number}",
            graph=graph_of(2).model_copy(
                update={"step": index, "final": index == 1, "global_features": _telling(index, first)}
            ),
            reward=reward,
        )
        for index, (action, reward) in enumerate(zip((first, second), rewards, strict=True))
    ]


def _telling(index, first):
    """Global features that say which decision of the run it is, and what the first was."""
    values = graph_of(2).global_features.numpy().copy()
    values[:3] = index, index * (first == 1), index * (first == 2)
    return type(graph_of(2).global_features).of(values)


@pytest.mark.parametrize(("gamma", "invests"), [(1.0, True), (0.0, False)])
def test_an_investment_is_learned_with_credit_over_the_run_and_not_without(gamma, invests):
    settings = LearningSettings(gamma=gamma, learning_rate=2e-3, fresh_batch=24, batch_size=48, safety_coef=0)
    made = Learner(small_policy(hidden=16), settings)
    rng = np.random.default_rng(0)
    for update in range(40):
        batch = [investment(12 * update + run, *map(int, rng.integers(0, 3, 2))) for run in range(12)]
        made.learn([each for run in batch for each in run])
    assert made.updates > 10
    example = make_example(0, legal=[0, 1, 2], graph=investment(0, 1, 1)[0].graph)
    logits = made.policy(example.graph).logits - example.graph.prior
    assert (float(logits[1]) > float(logits[2])) == invests
