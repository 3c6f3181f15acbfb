import math
from dataclasses import replace
from functools import cache

import pytest

from tamiyo.evaluation.lab.run import Curve, RunResult
from tamiyo.evaluation.lab.traffic import (
    ALONE,
    REDRAWN_WITH,
    REDRAWN_WITHOUT,
    REORDERED_WITH,
    REORDERED_WITHOUT,
    UNDER_POLICY,
    Job,
    Traffic,
    make,
)
from tamiyo.evaluation.lab.truth import costs, is_late, near_effects, objective, truths
from tamiyo.streams.stages.rewards.worth import ADAPTATION_COST, PARAMETER_COST

CURVE = Curve(
    step=[50, 100, 150, 200],
    compute=[1.0, 2.0, 3.0, 4.0],
    validation=[2.0, 1.0, 0.9, 0.1],
    test=[2.0, 0.5, 0.25, 0.1],
    kernel_parameters=[0, 10, 10, 30],
)
RESULT = RunResult("digits", 0, 0, 200, budget=100, parameters=50, compute=3.0, curve=CURVE, adaptations=[])


@cache
def traffic() -> Traffic:
    return make(Job("digits", "at_once", 3, steps=500))


def test_the_objective_is_the_test_loss_where_validation_is_best_within_the_compute() -> None:
    assert objective(RESULT) == pytest.approx(-math.log(0.25))
    assert objective(replace(RESULT, compute=2.5)) == pytest.approx(0.6931, abs=1e-3)
    assert math.isnan(objective(replace(RESULT, compute=0.5)))


def test_costs_are_of_adaptations_and_of_what_is_left_at_the_end() -> None:
    assert costs(RESULT) == pytest.approx(PARAMETER_COST * 0.3)
    executed = [each for each in traffic().result.adaptations if each.status == "executed"]
    assert costs(replace(RESULT, adaptations=executed)) == pytest.approx(
        ADAPTATION_COST * len(executed) + PARAMETER_COST * 0.3
    )


def test_the_gains_of_a_run_sum_to_what_it_gained_over_never_adapting() -> None:
    found = [each for each in truths(traffic()) if not is_late(traffic().result, each.adaptation.step)]
    assert len(found) >= 2
    never = traffic().branch(found[0].decision_id, ALONE)
    assert never is not None
    gained = objective(traffic().result) - objective(never)
    assert sum(each.gain or 0.0 for each in found) == pytest.approx(gained, abs=1e-9)
    assert abs(gained) > 1e-3


def test_what_comes_after_the_compute_that_counts_gains_nothing() -> None:
    result = replace(traffic().result, compute=traffic().result.curve.compute[0])
    late = replace(traffic(), result=result)
    assert {each.gain for each in truths(late) if is_late(result, each.adaptation.step)} == {0.0}


def test_a_near_effect_is_known_where_both_curves_reach_it() -> None:
    steps = list(range(50, 1001, 50))
    flat = Curve(steps, [float(s) for s in steps], [1.0] * len(steps), [1.0] * len(steps), [0] * len(steps))
    halved = replace(flat, validation=[1.0 if s <= 300 else 0.5 for s in steps])
    found = near_effects(flat, halved, 300)
    assert found[300] == pytest.approx(0.6931, abs=1e-3)
    short = replace(halved, step=steps[:10], validation=halved.validation[:10])
    assert set(near_effects(flat, short, 300)) == {100}


@cache
def repeated() -> Traffic:
    return make(Job("digits", "random:0.4", 3, alone=0.0, under_policy=1.0, reordered=1.0, redrawn=1.0, steps=500))


def net(result: RunResult | None) -> float:
    assert result is not None
    return objective(result) - costs(result)


def test_worth_is_measured_again_under_the_run_s_policy() -> None:
    run = repeated().result
    found = [each for each in truths(repeated()) if not is_late(run, each.adaptation.step)]
    assert len(found) >= 2
    for each in found:
        branch = {b.kind: b.result for b in repeated().branches if b.decision_id == each.decision_id}
        assert each.worth == pytest.approx(net(run) - net(branch[UNDER_POLICY]))
        assert each.reordered_worth == pytest.approx(net(branch[REORDERED_WITH]) - net(branch[REORDERED_WITHOUT]))
        assert each.redrawn_worth == pytest.approx(net(branch[REDRAWN_WITH]) - net(branch[REDRAWN_WITHOUT]))
        assert each.hindsight_worth == pytest.approx(net(run) - net(branch[REORDERED_WITHOUT]))
        measured = {each.worth, each.reordered_worth, each.redrawn_worth, each.hindsight_worth}
        assert len(measured) == 4


def test_a_repetition_that_was_not_made_is_unknown() -> None:
    assert all(each.reordered_worth is each.redrawn_worth is each.hindsight_worth is None for each in truths(traffic()))
