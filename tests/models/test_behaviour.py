import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo.models import inference
from tamiyo.models.actions import size
from tamiyo.models.batch import GraphBatch
from tamiyo.models.behaviour import BehaviourSettings, choose, distribution, distributions, recompute
from tamiyo.models.checkpoint import CheckpointHeader, load, save
from tamiyo.models.heuristic import baseline_logits
from tamiyo.models.masks import MaskLimits, legal_actions
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
from tamiyo.schemas.adaptation import Action, AdaptationDecision
from tamiyo.schemas.errors import PolicyError
from tamiyo.schemas.identity import decision_id, sampling_seed
from tamiyo.schemas.record import Tensor
from tests.support.factories import BLUEPRINTS, make_graph

CONFIG = PolicyConfig(blueprints=BLUEPRINTS)


def mask_of(policy, graph):
    return legal_actions(graph, policy.kinds, limits=MaskLimits())


def trained(*, seed=0, confident=1.0, **changes):
    """A policy as if it had learned something: random heads, and an ensemble that agrees on a share of actions."""
    policy = TamiyoPolicy(CONFIG.model_copy(update=changes)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for head in (policy.node_actions, policy.no_op, policy.value):
            head[3].weight.normal_(0, 0.3, generator=generator)
        policy.rewards.prior_scale *= 1.0 - confident
    return policy


def decision_of(policy, graph, mask, choice):
    name = decision_id(graph.graph_id)
    return AdaptationDecision(
        run_id=graph.run_id, decision_id=name, graph_id=graph.graph_id, step=graph.step, time_ms=graph.time_ms,
        type="no_op", proposed=Action(type="no_op"), confidence=1 - choice.uncertainty, uncertainty=choice.uncertainty,
        urgency=0.0, predicted_reward=choice.predicted_reward, value=choice.value, method=choice.method,
        policy_version=0, seed=sampling_seed(name), temperature=choice.temperature, layers=graph.layer_id,
        kinds=list(policy.kinds), action_index=choice.index, mask=mask.astype(np.uint8).tobytes(),
        probabilities=Tensor.of(choice.probabilities), log_probability=choice.log_probability, entropy=choice.entropy,
    )  # fmt: skip


def test_an_untrained_policy_acts_as_the_heuristic():
    policy, graph = TamiyoPolicy(CONFIG), make_graph(5)
    mask = mask_of(policy, graph)
    choice = choose(policy, graph, mask, seed=1)
    expected = np.where(mask, np.exp(baseline_logits(graph, policy.kinds, mask)), 0.0)
    np.testing.assert_allclose(choice.probabilities, expected, atol=1e-6)
    assert choice.method == "baseline"
    assert choice.uncertainty == pytest.approx(0.35)
    assert choice.predicted_reward == pytest.approx(0.0, abs=1e-6)
    assert policy.training  # as it was


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_the_distribution_is_the_one_that_is_sampled_from(temperature):
    policy, graph = trained(), make_graph(5)
    mask = mask_of(policy, graph)
    behaviour = None if temperature is None else BehaviourSettings(temperature=temperature)
    choice = choose(policy, graph, mask, seed=1, settings=behaviour)
    assert distribution(policy, graph, mask, settings=behaviour).tobytes() == choice.probabilities.tobytes()


def test_a_policy_that_is_sure_acts_by_itself():
    policy, graph = trained(), make_graph(5)
    mask = mask_of(policy, graph)
    choice = choose(policy, graph, mask, seed=1)
    batch = GraphBatch.of([graph], policy.kinds, [mask])
    with torch.no_grad():
        logits = policy(batch).logits
    expected = torch.softmax(logits.masked_fill(~batch.mask, -torch.inf), dim=0)
    np.testing.assert_allclose(choice.probabilities, expected.numpy(), atol=2e-6)
    assert choice.method == "policy"
    assert choice.uncertainty == pytest.approx(0.1)


def test_an_action_it_is_unsure_of_keeps_the_baselines_probability(monkeypatch):
    policy, graph = trained(), make_graph(5)
    mask = mask_of(policy, graph)
    legal = np.flatnonzero(mask)
    unsure, sure = legal[1:4], np.setdiff1d(legal, legal[1:4])
    values = torch.zeros(5, len(mask))
    values[0, torch.from_numpy(unsure)] = 1.0  # spread .4 there, 0 elsewhere
    monkeypatch.setattr(inference, "_rewards", lambda *_: values)
    choice = choose(policy, graph, mask, seed=1, settings=BehaviourSettings(exploration_bonus=0.0))
    baseline = np.where(mask, np.exp(baseline_logits(graph, policy.kinds, mask).astype(np.float64)), 0.0)
    np.testing.assert_allclose(choice.probabilities[unsure], baseline[unsure], rtol=1e-4)
    assert choice.probabilities[sure].sum() == pytest.approx(baseline[sure].sum(), abs=1e-5)
    with torch.no_grad():
        logits = policy(GraphBatch.of([graph], policy.kinds, [mask])).logits.numpy().astype(np.float64)
    wishes = np.exp(logits[sure] - logits[sure].max())
    np.testing.assert_allclose(
        choice.probabilities[sure], baseline[sure].sum() * wishes / wishes.sum(), atol=1e-5, rtol=1e-3
    )


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("sure_of", ["all", "some", "no_op", "some but no_op", "none"])
def test_of_what_it_is_unsure_the_baseline_keeps_a_share(monkeypatch, share, sure_of):
    policy, graph = trained(), make_graph(5)
    mask = mask_of(policy, graph)
    legal = np.flatnonzero(mask)
    unsure = {"all": [], "some": legal[1:4], "no_op": legal[1:], "some but no_op": legal[:4], "none": legal}[sure_of]
    values = torch.zeros(5, len(mask))
    values[0, torch.as_tensor(unsure, dtype=torch.int64)] = 1.0  # spread .4 there, 0 elsewhere
    monkeypatch.setattr(inference, "_rewards", lambda *_: values)
    before = choose(policy, graph, mask, seed=1).probabilities
    after = choose(policy, graph, mask, seed=1, settings=BehaviourSettings(unsure_share=share)).probabilities
    adaptations = np.setdiff1d(unsure, [0]).astype(int)
    np.testing.assert_allclose(after[adaptations], np.maximum(share * before[adaptations], 1e-6), rtol=1e-4)
    released = before[adaptations].sum() - after[adaptations].sum()
    grown = after - before
    if 0 in unsure:  # the policy decides nothing more than before
        assert grown[0] == pytest.approx(released, abs=1e-5)
    else:
        sure = np.setdiff1d(legal, unsure)
        assert grown[sure].sum() == pytest.approx(released, abs=1e-5)
        np.testing.assert_allclose(after[sure] / after[sure].sum(), before[sure] / before[sure].sum(), atol=1e-4)
    if share == 1.0:
        assert after.tobytes() == before.tobytes()


def test_the_exploration_bonus_favours_what_is_less_known(monkeypatch):
    policy, graph = trained(), make_graph(5)
    mask = mask_of(policy, graph)
    values = torch.zeros(5, len(mask))
    values[0, 0] = 0.25  # no_op: spread .1, half-width .2 instead of .1
    monkeypatch.setattr(inference, "_rewards", lambda *_: values)
    plain = choose(policy, graph, mask, seed=1, settings=BehaviourSettings(exploration_bonus=0.0)).probabilities
    found = choose(policy, graph, mask, seed=1, settings=BehaviourSettings(exploration_bonus=1.0)).probabilities
    odds = (found[0] / found[1]) / (plain[0] / plain[1])
    assert odds == pytest.approx(math.exp(0.1), rel=1e-3)


def test_temperature_flattens():
    policy, graph = TamiyoPolicy(CONFIG), make_graph(5)
    mask = mask_of(policy, graph)
    cold, warm = (choose(policy, graph, mask, seed=1, settings=BehaviourSettings(temperature=t)) for t in (0.5, 4.0))
    assert cold.entropy < warm.entropy
    assert warm.temperature == 4.0


def test_the_numbers_beside_the_action_belong_to_it():
    policy, graph = trained(confident=0.5), make_graph(5)
    choice = choose(policy, graph, mask_of(policy, graph), seed=4)
    p = choice.probabilities.astype(np.float64)
    assert choice.log_probability == pytest.approx(math.log(p[choice.index]))
    assert choice.entropy == pytest.approx(-(p[p > 0] * np.log(p[p > 0])).sum())
    assert p.sum() == pytest.approx(1.0, abs=1e-6)


def test_samples_follow_the_probabilities():
    policy, graph = TamiyoPolicy(CONFIG.model_copy(update={"hidden": 8, "layers": 1})), make_graph(5, growth_score=None)
    mask = mask_of(policy, graph)
    drawn = [choose(policy, graph, mask, seed=seed) for seed in range(600)]
    share = np.bincount([choice.index for choice in drawn], minlength=len(mask)) / len(drawn)
    assert np.abs(share - drawn[0].probabilities).max() < 0.05


@settings(max_examples=25, deadline=None)
@given(
    bits=st.lists(st.booleans(), min_size=size(3, range(8)), max_size=size(3, range(8))),
    seed=st.integers(0, 2**62 - 1),
    confident=st.sampled_from([0.0, 0.5, 1.0]),
    temperature=st.sampled_from([0.01, 1.0, 10.0]),
)
def test_laws(bits, seed, confident, temperature):
    policy, graph = trained(confident=confident, hidden=16, layers=1), make_graph(5)
    mask = np.array([True, *bits[1:]])
    how = BehaviourSettings(temperature=temperature)
    choice = choose(policy, graph, mask, seed=seed, settings=how)
    assert mask[choice.index]
    assert (choice.probabilities[mask] > 0).all()  # no collapse: whatever is legal can happen
    assert not choice.probabilities[~mask].any()
    assert 0 <= choice.uncertainty <= 1
    again = choose(policy, graph, mask, seed=seed, settings=how)
    assert again.probabilities.tobytes() == choice.probabilities.tobytes()
    assert repr(again) == repr(choice)


@pytest.mark.parametrize("confident", [0.0, 0.45, 1.0])
def test_propensities_can_be_recomputed_from_version_and_graph(confident):
    """Invariant 6: the policy version named, given the graph named, gives the logged probabilities within 1e-5."""
    policy = trained(seed=3, prior_scale=0.25 * (1 - confident), behaviour=BehaviourSettings(max_spread=0.14))
    policy.rewards.prior_scale = policy.config.prior_scale
    policy.calibration = policy.calibration.model_copy(update={"multiplier": 1.7})
    for windows, layers in ((5, 3), (9, 12)):
        graph = make_graph(windows, layers=layers)
        mask = mask_of(policy, graph)
        how = policy.config.behaviour.model_copy(update={"temperature": 1.3})
        choice = choose(policy, graph, mask, seed=9, settings=how)
        decision = decision_of(policy, graph, mask, choice)
        served, _, _ = load(save(policy, None, CheckpointHeader.of(policy, version=4)))
        found = recompute(served, graph, decision)
        np.testing.assert_allclose(found, decision.probabilities.numpy(), atol=1e-5, rtol=0)
        assert found.tobytes() == choice.probabilities.tobytes()


def test_a_decision_about_something_else_is_not_recomputed():
    policy, graph = TamiyoPolicy(CONFIG), make_graph(5)
    mask = mask_of(policy, graph)
    decision = decision_of(policy, graph, mask, choose(policy, graph, mask, seed=1))
    with pytest.raises(PolicyError, match="is on graph"):
        recompute(policy, make_graph(6), decision)
    with pytest.raises(PolicyError, match="use the policy version that made it"):
        recompute(TamiyoPolicy(PolicyConfig(blueprints=("low_rank",))), graph, decision)


def test_a_broken_network_does_not_decide():
    policy, graph = trained(), make_graph(5)
    with torch.no_grad():
        policy.encoder.weight.fill_(float("nan"))
    with pytest.raises(PolicyError, match="not finite"):
        choose(policy, graph, mask_of(policy, graph), seed=1)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("max_spread", [0.0, 0.15, 10.0])
def test_many_graphs_at_once_have_the_distributions_of_one_at_a_time(max_spread, share):
    settings = BehaviourSettings(max_spread=max_spread, temperature=0.7, unsure_share=share)
    policy = trained(seed=3, confident=0.5, behaviour=settings)
    graphs = [make_graph(1 + number % 5, layers=2 + number % 3) for number in range(6)]
    masks = [
        legal_actions(graph, policy.kinds, limits=MaskLimits(), paused=number == 2)
        for number, graph in enumerate(graphs)
    ]
    batch = GraphBatch.of(graphs, policy.kinds, masks)
    probabilities, predicted, value = distributions(policy, batch)
    ends = batch.offsets.tolist()
    for number, (graph, mask) in enumerate(zip(graphs, masks, strict=True)):
        one = choose(policy, graph, mask, seed=1)
        rows = slice(ends[number], ends[number + 1])
        assert np.allclose(probabilities[rows], one.probabilities, atol=1e-5)
        assert (probabilities[rows] > 0).tolist() == mask.tolist()
        assert predicted[rows][one.index] == pytest.approx(one.predicted_reward, abs=1e-5)
        assert value[number] == pytest.approx(one.value, abs=1e-5)


def test_a_network_that_is_not_finite_has_no_distribution():
    policy = trained()
    with torch.no_grad():
        policy.no_op[3].bias.fill_(math.nan)
    graph = make_graph(2)
    assert not np.isfinite(
        distributions(policy, GraphBatch.of([graph], policy.kinds, [mask_of(policy, graph)]))[0]
    ).all()
