"""Advantages are what twins measured, and nothing else."""

import pytest

from tamiyo.evaluation.lab.baselines import Never
from tamiyo.evaluation.lab.run import Run, RunSpec
from tamiyo.evaluation.lab.training.lookahead import DELAYS, HELPS, Lookahead, LookaheadJob
from tamiyo.evaluation.lab.truth import costs, is_late, objective
from tamiyo.evaluation.lab.twins import twin
from tamiyo.streams.stages.rewards.worth import ADAPTATION_COST

JOB = LookaheadJob("digits", "random:0.3", 4, points=8, tries=2, steps=400)


@pytest.fixture(scope="module")
def measured():
    return JOB.make()


def test_an_advantage_is_the_difference_between_two_runs(measured):
    # The first point comes before any adaptation, so the same can be measured from a run that never adapts.
    point = measured.points[0]
    assert not any(each.step <= point.step for each in measured.result.adaptations)
    with Run(RunSpec("digits", 4, 400), Never(), settings={"rewards": {"estimator": "rule"}}) as run:
        while (graph := run.advance()) is not None and graph.graph_id != point.graph.graph_id:
            run.decide()
        found = [twin(run, action, policy=Never(), compute=run.plain_compute) for action in (0, *point.actions)]
        best = point.actions[max(range(len(point.actions)), key=point.advantages.__getitem__)]
        later = [twin(run, best, policy=Never(), compute=run.plain_compute, delay=int(share * 400)) for share in DELAYS]
    without, *others = (objective(each) - costs(each) for each in found)
    assert point.without == without
    assert point.advantages == tuple(other - without for other in others)
    assert max(point.advantages) > HELPS
    assert point.waiting == max(0.0, *(objective(each) - costs(each) - without for each in later))
    for each, share in zip(later, DELAYS, strict=True):
        assert each.adaptations[-1].step > point.step + share * 400


def test_points_have_legal_actions_and_never_no_op(measured):
    assert len(measured.points) >= 2
    for point in measured.points:
        assert point.actions
        assert len(set(point.actions)) == len(point.actions) <= JOB.tries
        assert all(point.mask[action] and action != 0 for action in point.actions)


def test_after_an_adaptation_it_is_compared_with_the_run_as_it_is(measured):
    executed = measured.result.adaptations[0].step
    point = next(each for each in measured.points if each.step > executed)
    with Run(RunSpec("digits", 4, 400), JOB.policy_of(), settings={"rewards": {"estimator": "rule"}}) as run:
        while (graph := run.advance()) is not None and graph.graph_id != point.graph.graph_id:
            run.decide()
        without = twin(run, policy=Never(), compute=run.plain_compute)
    assert point.without == objective(without) - costs(without)


def test_beyond_the_compute_of_a_run_without_adaptations_an_action_brings_its_cost_only():
    # At once all layers grow: from there on a step costs more than twice as much.
    run = LookaheadJob("digits", "at_once", 4, points=30, tries=2, steps=400).make()
    late = [each for each in run.points if is_late(run.result, each.step)]
    assert late
    assert late[-1].step > 350
    for point in late:
        assert point.actions
        assert set(point.advantages) == {-ADAPTATION_COST}
        assert point.waiting == 0.0
        assert 0 < objective(run.result) - point.without <= costs(run.result)  # a later adaptation costs more
    for point in run.points:
        assert is_late(run.result, point.step) or set(point.advantages) != {-ADAPTATION_COST}


def test_where_nothing_helps_waiting_is_worth_nothing(measured):
    for point in measured.points:
        assert point.waiting >= 0.0
        if max(point.advantages) <= HELPS:
            assert point.waiting == 0.0
    unmeasured = LookaheadJob("digits", "random:0.3", 4, points=8, tries=2, steps=400, wait=False).make()
    assert [each.waiting for each in unmeasured.points if max(each.advantages) > HELPS] == [None] * sum(
        max(each.advantages) > HELPS for each in measured.points
    )


def test_looking_ahead_does_not_change_the_run(measured):
    with Run(RunSpec("digits", 4, 400), LookaheadJob("digits", "random:0.3", 4).policy_of(), settings={}) as run:
        plain = run.finish()
    assert plain.curve.validation == measured.result.curve.validation
    assert plain.adaptations == measured.result.adaptations


def test_a_file_keeps_all_of_it(measured, tmp_path):
    path = tmp_path / "run.parquet"
    measured.save(path)
    again = Lookahead.load(path)
    assert (again.job, again.result) == (measured.job, measured.result)
    for one, other in zip(again.points, measured.points, strict=True):
        assert one.graph == other.graph
        assert (one.mask == other.mask).all()
        for name in ("step", "without", "actions", "advantages", "waiting"):
            assert getattr(one, name) == getattr(other, name)


def test_names_are_files_and_differ():
    names = {
        LookaheadJob(task, policy, seed).name
        for task in ("digits", "host-1")
        for policy in ("heuristic", "learned:a/b.safetensors")
        for seed in (1, 2)
    }
    assert len(names) == 8
    assert not any("/" in name or ":" in name for name in names)
