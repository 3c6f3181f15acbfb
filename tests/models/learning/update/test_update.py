import copy
import math
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from tamiyo.models.behaviour import choose
from tamiyo.models.learning.hyperparameters import LearningSettings
from tamiyo.models.learning.update import LOSSES, Updater, _explained_variance
from tamiyo.schemas.errors import PolicyError
from tests.models.learning.update.updates import COUNT, EXAMPLES, actors, everything, same, settings, update
from tests.support.experiences import graph_of, make_example, small_policy

# An accepted update


def test_an_update_changes_everything_and_reports_metrics(updater):
    before = everything(updater)
    found = update(updater, version=1)
    after = everything(updater)
    assert not any(same(before[part], after[part]) for part in before)
    assert set(LOSSES) <= set(found.metrics)
    assert all(math.isfinite(number) for number in found.metrics.values())
    assert found.metrics["charts/gradient_steps"] == 2 * 3
    assert found.metrics["charts/minibatches_skipped"] == 0
    assert not updater.policy.training
    expected = [each.reward for each in EXAMPLES] - updater.predict(EXAMPLES).value
    assert found.advantages == pytest.approx(expected, abs=1e-6)


def test_the_same_update_gives_the_same_bits():
    made = [Updater(small_policy(), settings()) for _ in range(2)]
    updates = [update(each) for each in made]
    assert updates[0].metrics == updates[1].metrics
    assert same(everything(made[0]), everything(made[1]))


def test_it_learns_what_was_rewarded():
    made = Updater(small_policy(), settings())
    before = updater_probability(made)
    for version in range(6):
        update(made, version=version, seed=version)
    assert updater_probability(made) > 1.5 * before


def updater_probability(updater):
    graph = graph_of(2)
    return float(choose(updater.policy, graph, EXAMPLES[0].graph.mask.numpy(), seed=0).probabilities[1])


def test_the_last_minibatch_may_be_short_and_each_experience_is_in_one_of_an_epoch(monkeypatch):
    made = Updater(small_policy(), settings(minibatch_size=10))
    seen = []
    step = made._step
    monkeypatch.setattr(
        made, "_step", lambda all, inds, *rest, **more: seen.append(list(inds)) or step(all, inds, *rest, **more)
    )
    update(made)
    assert [len(each) for each in seen] == [10, 10, 4] * 2
    assert sorted(chain(*seen[:3])) == sorted(chain(*seen[3:])) == list(range(COUNT))
    assert seen[:3] != seen[3:]


def test_an_experience_without_choice_or_of_an_old_policy_trains_rewards_only():
    made = Updater(small_policy(), settings(max_age=3))
    forced = [make_example(f"f{number}", action=0, legal=[0]) for number in range(8)]
    old = [replace(each, policy_version=1) for each in EXAMPLES[:8]]
    found = update(made, [*forced, *old], version=5).metrics
    assert found["losses/policy_loss"] == found["losses/approx_kl"] == found["losses/importance"] == 0
    assert found["losses/value_loss"] > 0
    assert found["losses/reward_loss"] > 0
    young = update(made, [*forced, *(replace(each, policy_version=2) for each in EXAMPLES[:8])], version=5).metrics
    assert young["losses/importance"] > 0


def test_predictions_are_those_of_the_executed_action():
    made = Updater(small_policy(), settings())
    found = made.predict(EXAMPLES[:3])
    for index, each in enumerate(EXAMPLES[:3]):
        with torch.no_grad():
            output = made.policy(each.graph)
        heads = output.ensemble[:, each.action].numpy()
        assert found.reward[index] == pytest.approx(heads.mean(), abs=1e-6)
        assert found.spread[index] == pytest.approx(heads.std(), abs=1e-6)
        assert found.value[index] == pytest.approx(float(output.value[0]), abs=1e-6)


# The optimiser


def test_the_specifications_optimiser():
    default = LearningSettings()
    assert (default.learning_rate, default.weight_decay, default.t_max, default.max_grad_norm) == (
        3e-4,
        1e-4,
        10_000,
        0.5,
    )
    made = Updater(small_policy(), default)
    assert isinstance(made.optimizer, torch.optim.AdamW)
    assert made.optimizer.param_groups[0]["lr"] == 3e-4
    assert made.optimizer.param_groups[0]["weight_decay"] == 1e-4


def test_gradients_are_clipped_at_half(monkeypatch):
    for coefficient, clipped in ((1000.0, True), (1e-3, False)):
        chosen = settings(reward_coef=coefficient, max_loss=1e9, vf_coef=0, ent_coef=0, safety_coef=0, clip_coef=1e-6)
        made = Updater(small_policy(), chosen)
        norms = []
        step = made.optimizer.step

        def watched(step=step, made=made, norms=norms):
            gradients = [p.grad for p in made.policy.parameters() if p.grad is not None]
            norms.append(math.sqrt(sum(float(g.double().square().sum()) for g in gradients)))
            return step()

        monkeypatch.setattr(made.optimizer, "step", watched)
        # Without advantages the policy has no gradient, and the reward heads' coefficient is the gradient's.
        update(made, [replace(each, policy_version=0, choices=1) for each in EXAMPLES])
        assert norms
        if clipped:
            assert norms == pytest.approx([0.5] * len(norms), abs=1e-4)
        else:
            assert 0 < max(norms) < 0.4


def test_the_learning_rate_follows_a_cosine_and_stays_at_its_end():
    made = Updater(small_policy(), settings(learning_rate=1e-3, minimum_learning_rate=1e-4, t_max=4, update_epochs=1))
    rates = [update(made, EXAMPLES[:8], version=number).metrics["charts/learning_rate"] for number in range(6)]
    expected = [1e-4 + (1e-3 - 1e-4) * (1 + math.cos(math.pi * number / 4)) / 2 for number in (1, 2, 3, 4, 4, 4)]
    assert rates == pytest.approx(expected)


def test_the_proximal_policy_follows_as_an_average():
    made = Updater(small_policy(), settings(update_epochs=1, minibatch_size=COUNT, ewma_decay=0.75))
    before = copy.deepcopy(made.policy.state_dict())
    update(made)
    for name, average in made.proximal.named_parameters():
        now = made.policy.get_parameter(name)
        torch.testing.assert_close(average, 0.75 * before[name] + 0.25 * now, atol=1e-7, rtol=1e-6)


# What stops an update


def test_a_kl_above_the_target_stops_what_decides_and_not_what_predicts():
    # One minibatch an epoch: the first step moves the policy, the second finds it beyond the target.
    one, many = (
        Updater(small_policy(), settings(minibatch_size=COUNT, update_epochs=epochs, target_kl=1e-5))
        for epochs in (1, 5)
    )
    assert update(one).metrics["charts/stopped_early"] == 0
    found = update(many).metrics
    assert found["charts/stopped_early"] == 1
    assert found["charts/gradient_steps"] == 5
    assert same(actors(one.policy), actors(many.policy))
    assert same(one.proximal.state_dict(), many.proximal.state_dict())
    assert not torch.equal(one.policy.rewards.node_last, many.policy.rewards.node_last)


def test_below_the_target_nothing_stops():
    made = Updater(small_policy(), settings(target_kl=10.0, max_kl=20.0))
    assert update(made).metrics["charts/stopped_early"] == 0


def test_a_minibatch_beyond_the_loss_bound_is_skipped_and_the_others_learn():
    made = Updater(small_policy(), settings(max_loss=50.0, update_epochs=1))
    strange = replace(EXAMPLES[0], reward=1e6)
    found = update(made, [strange, *EXAMPLES[1:]]).metrics
    assert found["charts/minibatches_skipped"] == 1
    assert found["charts/gradient_steps"] == 2


# State


def test_a_state_goes_on_where_it_was(updater):
    policy = copy.deepcopy(updater.policy)
    resumed = Updater(policy, settings(), copy.deepcopy(updater.state()))
    assert same(everything(resumed), everything(updater))
    updates = [update(each, version=1, seed=1).metrics for each in (updater, resumed)]
    assert updates[0] == updates[1]
    assert same(everything(resumed), everything(updater))


@pytest.mark.parametrize("broken", [{}, {"proximal": {}}, {"optimizer": {}}, {"scheduler": {"last_epoch": "soon"}}])
def test_a_state_of_something_else_is_refused(updater, broken):
    state = {**updater.state(), **broken} if broken else {}
    with pytest.raises(PolicyError, match="does not fit this policy"):
        Updater(small_policy(), settings(), state)
    wider = Updater(small_policy(hidden=16), settings())
    update(wider)
    with pytest.raises(PolicyError, match="does not fit this policy"):
        Updater(small_policy(), settings(), wider.state())


def test_the_explained_variance_by_hand():
    def explained(predicted, observed):
        return _explained_variance(np.array(predicted, np.float32), np.array(observed, np.float32))

    assert explained([1, 2, 3], [1, 2, 3]) == 1.0
    assert explained([5, 5, 5], [1, 2, 3]) == 0.0
    # Errors -1, 0, 1 vary as much as what was observed.
    assert explained([2, 2, 2], [1, 2, 3]) == 0.0
    assert explained([1, 2, 2], [1, 2, 3]) == pytest.approx(1 - (2 / 9) / (2 / 3), abs=1e-6)
    assert explained([3, 2, 1], [1, 2, 3]) == pytest.approx(-3.0)
    assert explained([0, 1], [2, 2]) == 0.0
