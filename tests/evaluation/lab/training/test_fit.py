"""The policy fitted to measured advantages: chooses the best where it is known, and no_op where nothing pays."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tamiyo.evaluation.lab.bandit import GrowthBandit
from tamiyo.evaluation.lab.training import fit as module
from tamiyo.evaluation.lab.training.fit import (
    CAUTION,
    FitSettings,
    Lesson,
    Sample,
    fit,
    improved,
    lessons,
    predictions,
    samples,
)
from tamiyo.evaluation.lab.training.lookahead import Point
from tamiyo.host.blueprints import names
from tamiyo.models.actions import kinds
from tamiyo.models.batch import GraphBatch
from tamiyo.models.behaviour import choose
from tamiyo.models.masks import MaskLimits, legal_actions
from tamiyo.models.policy import PolicyConfig, PolicyOutput, TamiyoPolicy

KINDS = kinds(tuple(names()))
SETTINGS = FitSettings(hidden=32, layers=1, heads=4, epochs=40, learning_rate=3e-3, dropout=0.0)


def plant(count, *, good, seed=0, nodes=4):
    """Samples of a bandit: the right layer is worth `good`, any other -0.2."""
    bandit = GrowthBandit(seed, nodes=nodes)
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        context = bandit.round(index)
        right = int(np.argmax(context.expected[1:].reshape(nodes, -1)[:, 0]))
        graph = context.graph
        mask = legal_actions(graph, KINDS, limits=MaskLimits())
        loads = [1 + node * len(KINDS) + KINDS.index("load_kernel:parallel_expansion") for node in range(nodes)]
        tried = tuple(int(each) for each in rng.choice(loads, 2, replace=False))
        values = tuple(good if each == loads[right] else -0.2 for each in tried)
        found.append((Sample(GraphBatch.of([graph], KINDS, [mask]), tried, values, index), graph, mask, loads[right]))
    return found


@pytest.fixture(scope="module")
def worth_it():
    planted = plant(300, good=0.4)
    return fit([each[0] for each in planted[:250]], SETTINGS), planted[250:]


def test_it_chooses_the_best_action_on_graphs_it_has_not_seen(worth_it):
    policy, unseen = worth_it
    mass = [choose(policy, graph, mask, seed=0).probabilities[right] for _, graph, mask, right in unseen]
    assert np.mean(mass) > 0.8


def test_advantages_are_predicted_on_graphs_it_has_not_seen(worth_it):
    policy, unseen = worth_it
    predicted, spread, measured = predictions(policy, [each[0] for each in unseen])
    assert np.corrcoef(predicted, measured)[0, 1] > 0.9
    assert np.median(spread) < policy.config.behaviour.max_spread  # else it would change nothing


def test_where_it_is_unsure_it_hardly_adapts(worth_it):
    policy, unseen = worth_it
    behaviour = policy.config.behaviour.model_copy(update={"max_spread": 0.0})
    for _, graph, mask, _ in unseen[:10]:
        assert choose(policy, graph, mask, seed=0, settings=behaviour).probabilities[0] > 0.97


def test_where_nothing_pays_it_does_nothing():
    planted = plant(200, good=-0.1, seed=1)
    policy = fit([each[0] for each in planted[:160]], SETTINGS)
    idle = [choose(policy, graph, mask, seed=0).probabilities[0] for _, graph, mask, _ in planted[160:]]
    assert np.mean(idle) > 0.9


def test_it_waits_where_waiting_is_worth_more():
    planted = plant(200, good=0.3, seed=2)
    later = [replace(each[0], waiting=0.5) for each in planted[:160]]
    policy = fit(later, SETTINGS)
    idle = [choose(policy, graph, mask, seed=0).probabilities[0] for _, graph, mask, _ in planted[160:]]
    assert np.mean(idle) > 0.9


def test_where_it_is_unknown_what_waiting_is_worth_nothing_is_learned_about_it():
    planted = plant(200, good=0.3, seed=3)
    half = [replace(each[0], waiting=None if index % 2 else 0.4) for index, each in enumerate(planted[:160])]
    policy = fit(half, SETTINGS)
    idle = [choose(policy, graph, mask, seed=0).probabilities[0] for _, graph, mask, _ in planted[160:]]
    assert np.mean(idle) > 0.8  # with 0 in place of the unknown, waiting would seem worth 0.2, less than growing


def test_the_same_arguments_give_the_same_policy():
    found = [each[0] for each in plant(40, good=0.4)]
    quick = FitSettings(hidden=8, layers=1, heads=2, epochs=2, actor_epochs=2)
    state = torch.random.get_rng_state()
    one, other = fit(found, quick), fit(found, quick)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert one.calibration == other.calibration != TamiyoPolicy(one.config).calibration


def output_of(advantages, *, spread=0.0):
    """An output whose two heads differ by twice `spread` at every action but no_op."""
    mean = torch.tensor([0.0, *advantages])
    apart = torch.tensor([0.0, *([spread] * len(advantages))])
    nothing = torch.zeros(0)
    return PolicyOutput(
        logits=torch.zeros(len(mean)),
        value=torch.zeros(1),
        ensemble=torch.stack([mean - apart, mean + apart]),
        node_embeddings=nothing,
        global_embedding=nothing,
        action_graph=torch.zeros(len(mean), dtype=torch.int64),
    )


def batch_of(mask):
    policy = TamiyoPolicy(PolicyConfig(blueprints=("low_rank",), hidden=8, layers=1))
    bandit = GrowthBandit(0, nodes=1)
    return GraphBatch.of([bandit.round(0).graph], policy.kinds, [np.array(mask)])


def test_the_goal_is_the_best_legal_action_less_caution():
    batch = batch_of([True, True, True, False, True])
    goal, value = improved(output_of([0.1, 0.3, 0.9, 0.2]), batch)
    assert int(goal.argmax()) == 2  # the best is not legal
    assert float(goal[3]) == 0.0
    assert float(goal.sum()) == pytest.approx(1.0)
    assert float(value) == pytest.approx(0.3, rel=0.01)
    spread = (0.3 + 0.05) / CAUTION  # so unsure that nothing is left of the best
    goal, value = improved(output_of([0.1, 0.3, 0.9, 0.2], spread=spread), batch)
    assert int(goal.argmax()) == 0
    assert float(value) < 0.01


def test_where_only_no_op_is_legal_it_is_the_goal():
    goal, value = improved(output_of([0.5, 0.5, 0.5, 0.5]), batch_of([True, False, False, False, False]))
    assert goal.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert float(value) == 0.0


def test_exploration_costs_a_run_less_than_a_tenth_of_an_adaptation():
    assert module.EXPLORATION * 24 < 0.1


def mass_on_the_right(policy, planted):
    return np.mean([choose(policy, graph, mask, seed=0).probabilities[right] for _, graph, mask, right in planted])


def mass_on_no_op(policy, planted):
    return np.mean([choose(policy, graph, mask, seed=0).probabilities[0] for _, graph, mask, _ in planted])


def test_a_policy_that_learns_more_keeps_what_its_teacher_knew(worth_it):
    teacher, unseen = worth_it
    other = plant(300, good=-0.2, seed=5, nodes=9)  # larger networks, where nothing pays
    more = [replace(each[0], run=index) for index, each in enumerate(other[:250])]
    taught = [
        Lesson(sample.graph, teacher(sample.graph).ensemble.detach()) for sample, *_ in plant(150, good=0.4, seed=2)
    ]
    before = copy.deepcopy(teacher.state_dict())
    policy = fit(more, SETTINGS, teacher=teacher, taught=taught)
    forgetful = fit(more, SETTINGS, teacher=teacher)
    assert mass_on_no_op(teacher, other[250:]) < 0.01
    assert mass_on_no_op(policy, other[250:]) > 0.5
    assert mass_on_the_right(policy, unseen) > 0.9
    assert mass_on_the_right(forgetful, unseen) < 0.5
    assert policy.calibration.scores[: len(teacher.calibration.scores)] == teacher.calibration.scores
    assert len(policy.calibration.scores) > len(teacher.calibration.scores)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_lessons_are_the_graphs_where_nothing_was_measured(worth_it):
    teacher, unseen = worth_it
    _, graph, mask, right = unseen[0]
    measured = Point(graph, mask, 50, -1.0, (right,), (0.1,))
    kept = Point(graph, mask, 50, math.nan, (), (), None)
    run = SimpleNamespace(points=[measured, kept])
    (lesson,) = lessons([run], teacher)
    assert torch.allclose(lesson.ensemble, teacher(lesson.graph).ensemble, atol=1e-5)
    assert not lesson.ensemble.requires_grad
    (sample,) = samples([run])
    assert sample.actions == (right,)
