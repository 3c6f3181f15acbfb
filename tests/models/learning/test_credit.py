"""Credit over the run, and that a learner uses it."""

from dataclasses import replace

import numpy as np
import pytest

from tamiyo.models.learning.credit import RunCredit
from tamiyo.models.learning.hyperparameters import LearningSettings
from tamiyo.models.learning.learner import Learner
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
    again = decisions([0.0, 0.5, 0.9])[2]
    credit = RunCredit(gae_lambda=1.0)
    for each in reversed(examples):
        credit.add(each)
    assert credit.of(examples[0]) == pytest.approx(0.6)
    credit.add(again)  # revision 0 once more: ignored
    assert credit.of(examples[0]) == pytest.approx(0.6)
    credit.add(replace(again, revision=1))
    assert credit.of(examples[0]) == pytest.approx(1.4)


def test_runs_are_apart_and_the_oldest_is_dropped():
    first, second = decisions([0.5, 0.5], run="a"), decisions([-0.5, -0.5, 0.0], run="b")
    credit = RunCredit(gae_lambda=1.0, capacity=4)
    for each in (*first, *second):
        credit.add(each)
    assert credit.of(second[0]) == pytest.approx(-1.0)
    assert credit.of(first[0]) == 0.5  # its own reward is all that is known
    assert len(credit) == 3


# Small runs whose reward has a loophole for who is credited with the next reward alone. The first global features tell
# the decision's place in its run and what was done before; each function returns the reward of an action there.


def investment(place, before, action):
    """Action 1 earns nothing at first, and lets action 1 earn .8 afterwards; action 2 earns .1 at once."""
    if place == 0:
        return 0.1 if action == 2 else 0.0
    return 0.8 if before == [1] and action == 1 else 0.0


def pump(place, before, action):
    """Action 1 loads a kernel that is worth .3 and stays, action 2 unloads it: a second load earns .3 once more."""
    loaded = sum({1: 1, 2: -1, 0: 0}[each] for each in before) > 0
    return (0.29 if action == 1 and not loaded else 0.0) + (-0.31 if action == 2 and loaded else 0.0)


def early_load(place, before, action):
    """Action 1 earns .5 where the loss falls anyway, which the next reward takes back; action 2 earns .2 for good."""
    if place == 0:
        return {0: 0.0, 1: 0.5, 2: 0.2}[action]
    return -0.5 if before[-1] == 1 else 0.0


def budget(place, before, action):
    """One adaptation is paid for: action 1 earns .2 at any time, action 2 earns .7 at the last decision only."""
    if any(before):
        return 0.0
    return {0: 0.0, 1: 0.2, 2: 0.7 if place == 1 else 0.0}[action]


def run_of(rule, actions, number):
    """The experiences of a run with these actions."""
    found = []
    for place, action in enumerate(actions):
        before = list(actions[:place])
        values = graph_of(2).global_features.numpy().copy()
        values[:7] = place, *(before.count(each) for each in (1, 2)), *(before[-1:] == [each] for each in (0, 1, 2)), 0
        graph = graph_of(2).model_copy(
            update={
                "step": place,
                "final": place == len(actions) - 1,
                "global_features": type(graph_of(2).global_features).of(values),
            }
        )
        found.append(
            make_experience(
                f"{number}-{place}",
                action=action,
                legal=[0, 1, 2],
                run_id=f"run-{number}",
                graph=graph,
                reward=rule(place, before, action),
            )
        )
    return found


def preferred(made, rule, actions):
    """What the learned policy prefers after these actions of a run."""
    experience = run_of(rule, (*actions, 0), 0)[-1]
    example = make_example(0, legal=[0, 1, 2], graph=experience.graph)
    logits = made.policy(example.graph).logits.tolist()
    return max(range(3), key=lambda action: logits[action])


LOOPHOLES = [
    (investment, 2, (), {1}),
    (early_load, 2, (), {2}),
    (budget, 2, (), {0}),
    (pump, 3, (1,), {0, 1}),  # what is loaded is loaded: to load it again changes nothing
]


def learned(rule, length, gamma):
    """A policy that has learned from runs of uniformly random actions."""
    settings = LearningSettings(
        gamma=gamma,
        gae_lambda=1.0,
        warm_up=0,
        learning_rate=2e-3,
        fresh_batch=12 * length,
        batch_size=96,
        safety_coef=0,
        entropy_floor=0,
    )
    made = Learner(small_policy(hidden=16, heuristic_weight=0.0), settings)
    rng = np.random.default_rng(0)
    for update in range(25):
        for run in range(12):
            for each in run_of(rule, tuple(map(int, rng.integers(0, 3, length))), 12 * update + run):
                made.take(each)
        made.learn()
    assert made.updates >= 5
    return made


@pytest.mark.parametrize(("rule", "length", "after", "right"), LOOPHOLES)
def test_a_loophole_does_not_pay_with_credit_over_the_run(rule, length, after, right):
    assert preferred(learned(rule, length, gamma=1.0), rule, after) in right


@pytest.mark.parametrize(("rule", "length", "after", "right"), [each for each in LOOPHOLES if each[0] is not pump])
def test_a_bandit_falls_for_it(rule, length, after, right):
    assert preferred(learned(rule, length, gamma=0.0), rule, after) not in right


def test_pumping_earns_nothing_more_than_loading_once():
    pumped, once = (
        [each.reward for each in run_of(pump, actions, 0)] for actions in ((1, 2, 1, 2, 1), (1, 0, 0, 0, 0))
    )
    assert sum(pumped) < sum(once)
