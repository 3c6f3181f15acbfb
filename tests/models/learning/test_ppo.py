import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.models.batch import GraphBatch, masked_log_softmax
from tamiyo.models.learning.hyperparameters import LearningSettings
from tamiyo.models.learning.ppo import (
    choices,
    divergence,
    importance_weight,
    normalise_advantage,
    weighted_mean,
)
from tamiyo.models.masks import MaskLimits, legal_actions
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
from tests.models.learning.slow_ppo import distribution, losses_of, nudged, random_samples, sample, slow_losses, tensors
from tests.support.factories import make_graph

SETTINGS = LearningSettings()
POLICY_ONLY = LearningSettings(vf_coef=0, ent_coef=0, safety_coef=0, reward_coef=0)
FIELDS = ["total", "policy", "value", "entropy", "safety", "reward", "approx_kl", "clipfrac", "importance"]
seeds = st.integers(0, 2**32)


def fast_losses(samples, settings=SETTINGS, dtype=torch.float64, **calibration):
    losses = losses_of(*tensors(samples, dtype), settings, **calibration)
    return {name: float(getattr(losses, name).detach()) for name in FIELDS}


# Against the independent computation


@given(seeds, st.floats(0.3, 2.25), st.sampled_from([0.0, 0.1]))
def test_every_loss_equals_the_slow_computation(seed, multiplier, noise_floor):
    samples = random_samples(seed)
    found = fast_losses(samples, multiplier=multiplier, noise_floor=noise_floor)
    assert found == pytest.approx(
        slow_losses(samples, SETTINGS, multiplier=multiplier, noise_floor=noise_floor), abs=1e-9
    )


@pytest.mark.parametrize("seed", range(5))
def test_in_single_precision_too(seed):
    samples = random_samples(seed, graphs=16)
    found = fast_losses(samples, dtype=torch.float32, multiplier=0.5, noise_floor=0.1)
    expected = slow_losses(samples, SETTINGS, multiplier=0.5, noise_floor=0.1)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_every_gradient_equals_the_slow_computations_finite_difference(seed):
    samples = random_samples(seed, graphs=4, heads=2)
    output, batch, targets = tensors(samples)
    losses_of(output, batch, targets, SETTINGS, multiplier=0.5, noise_floor=0.1).total.backward()
    for part in ("logits", "value", "ensemble"):
        gradient = getattr(output, part).grad
        for position, found in enumerate(gradient.flatten().tolist()):
            ahead, behind = (
                slow_losses(nudged(samples, part, position, step), SETTINGS, multiplier=0.5, noise_floor=0.1)["total"]
                for step in (1e-6, -1e-6)
            )
            assert found == pytest.approx((ahead - behind) / 2e-6, abs=1e-6), (part, position)


def test_the_gradient_reaches_every_weight_of_a_policy():
    # Directional derivatives of the slow loss of the network's output, along random directions in weight space.
    policy = TamiyoPolicy(PolicyConfig(blueprints=("parallel_expansion",), hidden=4, layers=1, heads=2)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    policy.double()
    graphs = [make_graph(layers=2), make_graph(layers=3, growth_score=[0.1, 0.02, 0.3])]
    masks = [legal_actions(graph, policy.kinds, limits=MaskLimits()) for graph in graphs]
    single = GraphBatch.of(graphs, policy.kinds, masks)
    batch = GraphBatch(
        **{
            name: value.double() if value.is_floating_point() else value
            for name, value in ((name, getattr(single, name)) for name in GraphBatch.__slots__)
        }
    )
    experiences = [
        sample(
            [0.0] * len(mask), mask=mask.tolist(), action=1, advantage=worth, reward=worth, proximal=0.05, behaviour=0.1
        )
        for mask, worth in zip(masks, (0.7, -0.4), strict=True)
    ]

    def outputs():
        with torch.no_grad():
            output = policy(batch)
        spans = list(zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True))
        return [
            replace(
                each,
                logits=output.logits[start:end].tolist(),
                value=float(output.value[index]),
                ensemble=output.ensemble[:, start:end].tolist(),
            )
            for index, (each, (start, end)) in enumerate(zip(experiences, spans, strict=True))
        ]

    *_, targets = tensors(experiences)
    losses_of(policy(batch), batch, targets, SETTINGS, multiplier=0.5, noise_floor=0.1).total.backward()
    parameters = list(policy.parameters())
    assert all(parameter.grad is not None for parameter in parameters)
    step = 1e-6
    for _ in range(5):
        direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
        expected = sum(float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True))
        ends = []
        for sign in (1, -2):  # one step ahead, then two back
            with torch.no_grad():
                for parameter, along in zip(parameters, direction, strict=True):
                    parameter.add_(along, alpha=sign * step)
            ends.append(slow_losses(outputs(), SETTINGS, multiplier=0.5, noise_floor=0.1)["total"])
        with torch.no_grad():
            for parameter, along in zip(parameters, direction, strict=True):
                parameter.add_(along, alpha=step)
        assert expected == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-6)


# By hand


def test_the_importance_weight_is_proximal_over_behaviour_and_truncated():
    proximal, behaviour = torch.tensor([0.5, 0.1, 0.9, 0.3]), torch.tensor([0.25, 0.4, 0.1, 0.3])
    found = importance_weight(proximal.log(), behaviour.log(), 2.0)
    torch.testing.assert_close(found, torch.tensor([2.0, 0.25, 2.0, 1.0]))
    assert importance_weight(torch.zeros(1), torch.tensor([math.log(1e-6)]), 2.0).item() == 2.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [
        (1.1, 1.0, -1.1, True),
        (1.1, -1.0, 1.1, True),
        (1.5, 1.0, -1.2, False),  # good and already likelier: not further
        (1.5, -1.0, 1.5, True),  # bad and likelier: back, however far
        (0.5, 1.0, -0.5, True),  # good and less likely: back
        (0.5, -1.0, 0.8, False),  # bad and already less likely: not further
    ],
)
def test_the_clip_for_both_signs_of_the_advantage(ratio, advantage, loss, moves):
    # Two actions of probability 1/2; the importance weight is (1/2 / ratio) / 1/4, kept below its bound.
    proximal = 0.5 / ratio
    output, batch, targets = tensors([sample([0.0, 0.0], advantage=advantage, proximal=proximal, behaviour=proximal)])
    found = losses_of(output, batch, targets, POLICY_ONLY)
    assert found.policy.item() == found.total.item() == pytest.approx(loss)
    found.total.backward()
    # d ratio / d logit = ratio (1 - 1/2) at the action, minus that at the other.
    expected = [-advantage * ratio * 0.5, advantage * ratio * 0.5] if moves else [0.0, 0.0]
    assert output.logits.grad.tolist() == pytest.approx(expected)
    assert found.clipfrac.item() == float(abs(ratio - 1) > 0.2)
    assert found.approx_kl.item() == pytest.approx(ratio - 1 - math.log(ratio))


def test_the_policy_loss_is_weighted_by_importance_confidence_and_actor():
    samples = [
        sample([0.0, 0.0], advantage=1.0, proximal=0.5, behaviour=0.25, weight=0.5),  # rho 2, ratio 1
        sample([0.0, 0.0], advantage=-1.0, proximal=0.5, behaviour=1.0, weight=1.0),  # rho 1/2
        sample([0.0, 0.0], advantage=9.0, proximal=0.5, behaviour=0.5, actor=0.0),
    ]
    # (0.5 x -2 + 1 x 0.5) / 1.5
    assert fast_losses(samples)["policy"] == pytest.approx(-1 / 3)
    assert fast_losses(samples)["importance"] == pytest.approx(1.25)


def test_value_and_reward_heads_by_hand():
    first = sample(
        [0.0, 0.0],
        value=0.5,
        returns=0.2,
        reward=1.0,
        ensemble=[[0.0, 9.0], [0.5, 9.0]],
        bootstrap=[2.0, 0.0],
        weight=1.0,
    )
    second = sample([0.0, 0.0], value=0.0, returns=-2.0, reward=-1.0, ensemble=[[-1.0, 9.0], [0.0, 9.0]], weight=0.25)
    found = fast_losses([first, second])
    assert found["value"] == pytest.approx((0.09 + 0.25 * 4.0) / 1.25)
    # First: (2 x 1 + 0 x 0.25) / 2 heads = 1; second: (0 + 1) / 2.
    assert found["reward"] == pytest.approx((1.0 + 0.25 * 0.5) / 1.25)


def test_entropy_counts_only_graphs_with_a_choice():
    choosing, forced = sample([0.0, 0.0]), sample([0.0, 3.0], mask=[True, False])
    assert fast_losses([choosing, forced])["entropy"] == pytest.approx(math.log(2))
    assert fast_losses([forced])["entropy"] == 0.0
    assert fast_losses([forced])["safety"] == pytest.approx(0.1 * 0.1)  # its uncertainty is 0, its entropy no matter


def test_the_specifications_safety_term_by_hand():
    # Spread of the heads .1, so half-width 0.25 x (.1 + .1) = .05 and relu(.1 - .05) = .05; entropy of (.9, .1) is
    # .3251, so relu(.5 - .3251) = .1749; each is weighed by .1.
    sure = sample([math.log(9.0), 0.0], ensemble=[[0.1, 0.0], [0.3, 0.0]])
    found = fast_losses([sure], multiplier=0.25, noise_floor=0.1)
    assert found["safety"] == pytest.approx(0.1 * 0.05 + 0.1 * (0.5 - 0.325083), abs=1e-6)
    unsure = sample([0.0, 0.0], ensemble=[[0.1, 0.0], [0.3, 0.0]])
    assert fast_losses([unsure], multiplier=1.0)["safety"] == pytest.approx(0.0)


def test_the_total_is_the_specifications_sum():
    found = fast_losses(random_samples(3), multiplier=0.5)
    assert SETTINGS.vf_coef == 0.5
    assert SETTINGS.ent_coef == 0.01
    assert found["total"] == pytest.approx(
        found["policy"] + 0.5 * found["value"] - 0.01 * found["entropy"] + found["safety"] + found["reward"]
    )


# What must not count


def test_masked_actions_have_no_gradient_whatever_their_logits():
    output, batch, targets = tensors(
        [sample([0.3, 1e30, -0.2, -1e30], mask=[True, False, True, False], action=2, advantage=1.0)]
    )
    losses_of(output, batch, targets, SETTINGS).total.backward()
    gradient = output.logits.grad
    assert torch.isfinite(gradient).all()
    assert gradient[[1, 3]].tolist() == [0.0, 0.0]
    assert gradient[2] != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("without", [{"weight": 0.0}, {"actor": 0.0}])
def test_an_experience_without_weight_does_not_count_even_with_an_infinite_ratio(without, dtype):
    counted = sample([0.2, -0.1], advantage=1.0, proximal=0.4)
    ignored = sample([0.5, 0.0], advantage=-1.0, **without)
    output, batch, targets = tensors([counted, ignored], dtype)
    targets.proximal_logprob[1] = -1000.0
    losses = losses_of(output, batch, targets, POLICY_ONLY)
    alone, alone_batch, alone_targets = tensors([counted], dtype)
    expected = losses_of(alone, alone_batch, alone_targets, POLICY_ONLY)
    torch.testing.assert_close(losses.policy, expected.policy)
    losses.total.backward()
    expected.total.backward()
    torch.testing.assert_close(output.logits.grad[:2], alone.logits.grad)
    assert output.logits.grad[2:].tolist() == [0.0, 0.0]


def test_a_ratio_that_the_clip_cuts_off_has_no_gradient_even_where_it_overflows():
    output, batch, targets = tensors([sample([0.0, 0.0], advantage=1.0)], torch.float32)
    targets.proximal_logprob[0] = -1000.0
    targets.behaviour_logprob[0] = -1000.0
    losses = losses_of(output, batch, targets, POLICY_ONLY)
    losses.total.backward()
    assert losses.policy.item() == pytest.approx(-1.2)
    assert output.logits.grad.tolist() == [0.0, 0.0]


def test_importance_is_no_part_of_the_gradient():
    output, batch, targets = tensors(random_samples(1))
    losses = losses_of(output, batch, targets, SETTINGS)
    assert not any(each.requires_grad for each in (losses.approx_kl, losses.clipfrac, losses.importance))


# The pieces


def test_normalised_advantages_by_hand():
    ones = torch.ones(2)
    assert normalise_advantage(torch.tensor([1.0, 3.0]), ones, 0.05).tolist() == [-1.0, 1.0]
    # Weights 3 and 1: mean 1.5, variance (3 x .25 + 2.25) / 4 = .75.
    found = normalise_advantage(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0]), 0.05)
    assert found.tolist() == pytest.approx([-0.5 / math.sqrt(0.75), 1.5 / math.sqrt(0.75)])
    # A spread of .01 is held to be .05 wide.
    assert normalise_advantage(torch.tensor([0.01, -0.01]), ones, 0.05).tolist() == pytest.approx([0.2, -0.2])
    assert normalise_advantage(torch.tensor([5.0, 7.0]), torch.zeros(2), 0.05).tolist() == [0.0, 0.0]
    # What has no weight has no part in mean and scale.
    assert normalise_advantage(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([1.0, 1.0, 0.0]), 0.05)[:2].tolist() == [
        -1.0,
        1.0,
    ]


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.floats(-5, 5), st.floats(1, 10))
def test_normalised_advantages_ignore_a_shift_and_keep_their_order(values, shift, scale):
    advantage = torch.tensor(values, dtype=torch.float64)
    weight = torch.ones_like(advantage)
    found = normalise_advantage(advantage, weight, 0.05)
    torch.testing.assert_close(found, normalise_advantage(advantage + shift, weight, 0.05), atol=1e-9, rtol=1e-9)
    assert abs(float(found.mean())) < 1e-9
    assert float(found.std(correction=0)) <= 1 + 1e-9
    order = advantage.argsort(stable=True)
    assert (found[order].diff() >= 0).all()
    if advantage.std(correction=0) > 0.05:
        scaled = normalise_advantage(scale * advantage, weight, 0.05)
        torch.testing.assert_close(found, scaled, atol=1e-9, rtol=1e-9)


def test_the_weighted_mean_by_hand():
    assert weighted_mean(torch.tensor([1.0, 4.0]), torch.tensor([3.0, 1.0])).item() == 1.75
    assert weighted_mean(torch.tensor([1.0, math.inf, math.nan]), torch.tensor([2.0, 0.0, 0.0])).item() == 1.0
    assert weighted_mean(torch.tensor([1.0, 2.0]), torch.zeros(2)).item() == 0.0


def test_choices_are_counted_by_graph():
    mask = torch.tensor([True, False, True, True, False])
    assert choices(mask, torch.tensor([0, 0, 0, 1, 1]), 2).tolist() == [2, 1]


def test_the_divergence_by_hand():
    inf = math.inf
    before = torch.tensor([math.log(0.5), math.log(0.5), -inf, 0.0, -inf])
    now = torch.tensor([math.log(0.25), math.log(0.75), -inf, 0.0, -inf])
    found = divergence(before, now, torch.tensor([0, 0, 0, 1, 1]), 2)
    assert found.tolist() == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.0])
    assert divergence(before, before, torch.tensor([0, 0, 0, 1, 1]), 2).tolist() == [0.0, 0.0]


@given(seeds)
def test_the_divergence_is_exact_and_never_negative(seed):
    before, now = random_samples(seed), random_samples(seed)
    now = [replace(each, logits=[logit + 0.3 * index for index, logit in enumerate(each.logits)]) for each in now]
    outputs = []
    for samples in (before, now):
        output, batch, _ = tensors(samples)
        outputs.append(masked_log_softmax(output.logits.detach(), batch.mask, batch.action_graph))
    found = divergence(outputs[0], outputs[1], batch.action_graph, batch.graphs).tolist()
    expected = [
        sum(p * math.log(p / q) for p, q in zip(distribution(a), distribution(b), strict=True) if p > 0)
        for a, b in zip(before, now, strict=True)
    ]
    assert found == pytest.approx(expected, abs=1e-9)
    assert min(found) >= -1e-12


def test_a_minibatch_takes_its_experiences_and_nothing_else():
    samples = random_samples(2, graphs=5)
    *_, targets = tensors(samples)
    picked = targets.minibatch(torch.tensor([3, 0]), torch.tensor([4, 1]))
    assert picked.action.tolist() == [4, 1]
    for name in ("behaviour_logprob", "proximal_logprob", "advantage", "returns", "reward", "weight", "actor"):
        assert getattr(picked, name).tolist() == getattr(targets, name)[[3, 0]].tolist()
    assert picked.bootstrap.T.tolist() == [samples[3].bootstrap, samples[0].bootstrap]
