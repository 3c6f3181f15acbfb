"""What rolls an update back, and that nothing of it stays."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tamiyo.models.learning.update import CRITICS, Updater
from tamiyo.schemas.errors import StepTooLarge, UpdateRejected
from tests.models.learning.update.updates import COUNT, EXAMPLES, everything, same, settings, update
from tests.support.experiences import make_example, small_policy


def with_a_broken_gradient(updater, monkeypatch):
    updater.policy.encoder.weight.register_hook(lambda gradient: gradient * math.nan)
    return EXAMPLES


def with_a_reward_of_nan(updater, monkeypatch):
    return [replace(each, reward=math.nan) for each in EXAMPLES]


def with_a_loss_bound(updater, monkeypatch):
    updater.settings = settings(max_loss=1e-9)
    return EXAMPLES


def with_a_kl_bound(updater, monkeypatch):
    updater.settings = settings(target_kl=1e9, max_kl=1e-9, shortenings=0)
    return EXAMPLES


def with_an_entropy_floor(updater, monkeypatch):
    # Only what is likeliest already is worth anything: learning makes the policy surer.
    updater.settings = settings(entropy_floor=50.0, ent_coef=0, safety_coef=0, shortenings=0)
    likeliest = int(torch.argmax(updater.policy(EXAMPLES[0].graph).logits))
    return [
        make_example(number, action=likeliest if number % 2 else 4, reward=0.8 if number % 2 else -0.8)
        for number in range(COUNT)
    ]


def with_weights_of_nan(updater, monkeypatch):
    step = updater.optimizer.step

    def broken():
        step()
        with torch.no_grad():
            updater.policy.value[0].bias[0] = math.nan

    monkeypatch.setattr(updater.optimizer, "step", broken)
    updater.settings = settings(update_epochs=1, minibatch_size=COUNT)
    return EXAMPLES


def with_an_output_that_overflows(updater, monkeypatch):
    for group in updater.optimizer.param_groups:
        group["lr"] = 1e30
    updater.settings = settings(update_epochs=1, minibatch_size=COUNT)
    return EXAMPLES


def without_confidence(updater, monkeypatch):
    return [replace(each, confidence=0.0) for each in EXAMPLES]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (with_a_reward_of_nan, "all 6 minibatches had a loss that was above 50.0 or not finite"),
        (with_a_broken_gradient, "all 6 minibatches"),
        (with_a_loss_bound, "all 6 minibatches had a loss that was above 1e-09"),
        (with_a_kl_bound, "nats, more than the limit of 1e-09"),
        (with_an_entropy_floor, "the entropy fell from"),
        (with_weights_of_nan, "weights are not finite"),
        (with_an_output_that_overflows, "output is not finite"),
        (without_confidence, "no experience of the batch has a confidence above 0"),
    ],
)
def test_a_bad_update_is_rolled_back_completely(updater, monkeypatch, damage, reason):
    examples = damage(updater, monkeypatch)
    before = everything(updater)
    with pytest.raises(UpdateRejected, match=reason):
        update(updater, examples, version=1)
    assert same(everything(updater), before)
    assert not updater.policy.training


def distances(updater, before):
    """How far what decides has moved, and what only predicts."""
    found = {True: 0.0, False: 0.0}
    for (name, new), old in zip(updater.policy.named_parameters(), before.parameters(), strict=True):
        found[name.startswith(CRITICS)] += float((new - old).detach().square().sum())
    return math.sqrt(found[False]), math.sqrt(found[True])


@pytest.mark.parametrize("target_kl", [1e9, 1e-6])  # with the latter, what decides has settled before the check
@pytest.mark.parametrize("passes", [1, 2, 3, 4, 5])
def test_a_step_that_is_too_large_is_shortened(passes, target_kl):
    """The check accepts its n-th call: after n - 1 times, at most three of them."""
    whole, made = (Updater(small_policy(), settings(target_kl=target_kl)) for _ in range(2))
    start = copy.deepcopy(made.policy)
    kl = update(whole).metrics["losses/kl"]
    decides, predicts = distances(whole, start)
    calls = []

    def check(candidate):
        calls.append(distances(made, start))
        if len(calls) < passes:
            raise StepTooLarge("too far")

    if passes > 4:
        before = everything(made)
        with pytest.raises(StepTooLarge, match="too far"):
            update(made, check=check)
        assert same(everything(made), before)
        assert len(calls) == 4
        return
    found = update(made, check=check)
    share = 0.25 ** (passes - 1)
    assert found.metrics["charts/step_share"] == share
    assert found.metrics["losses/kl"] <= 1.01 * share * kl  # to the second order, its square
    expected = [(decides * 0.25**n, predicts * (0.25**n if n == 3 else 1)) for n in range(passes)]
    assert [each[0] for each in calls] == pytest.approx([each[0] for each in expected], rel=1e-3)
    assert [each[1] for each in calls] == pytest.approx([each[1] for each in expected], rel=1e-3)
    assert distances(made, start) == calls[-1]
    with torch.no_grad():
        values = [float(made.policy(each.graph).value) for each in EXAMPLES]
    assert found.advantages == pytest.approx(
        [each.reward - value for each, value in zip(EXAMPLES, values, strict=True)], abs=1e-5
    )


def test_a_kl_above_the_limit_is_shortened_until_it_is_below():
    wide = Updater(small_policy(), settings(target_kl=1e9, learning_rate=3e-3))
    kl = update(wide).metrics["losses/kl"]
    made = Updater(small_policy(), settings(target_kl=1e9, learning_rate=3e-3, max_kl=kl / 2))
    found = update(made)
    assert found.metrics["charts/step_share"] < 1
    assert 0 < found.metrics["losses/kl"] <= kl / 2


def test_after_a_rollback_learning_continues_as_if_it_had_not_been():
    one, other = (Updater(small_policy(), settings()) for _ in range(2))
    for each in (one, other):
        update(each)
    with pytest.raises(UpdateRejected):
        update(one, [replace(each, reward=math.nan) for each in EXAMPLES])
    for each in (one, other):
        update(each, version=1, seed=1)
    assert same(everything(one), everything(other))


def test_a_heuristic_below_the_floor_may_learn_as_long_as_it_does_not_lose_entropy():
    # With the entropy bonus alone the entropy rises, though it stays below a floor that nothing could reach.
    made = Updater(small_policy(), settings(entropy_floor=50.0, ent_coef=5.0, clip_coef=1e-6))
    before = entropy(made.policy)
    found = update(made, [replace(each, choices=1) for each in EXAMPLES])
    assert before < found.metrics["losses/entropy_after"] < 50.0
    assert found.metrics["losses/entropy_after"] == pytest.approx(entropy(made.policy), abs=1e-5)


def entropy(policy):
    with torch.no_grad():
        logits = [policy(each.graph).logits[each.graph.mask] for each in EXAMPLES]
    return float(np.mean([torch.distributions.Categorical(logits=each).entropy() for each in logits]))
