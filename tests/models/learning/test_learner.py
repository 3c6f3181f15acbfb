"""The learner without Kafka; that it learns anything is tests/evaluation/lab/test_bandit.py."""

import copy
import math

import numpy as np
import pytest
import torch

from tamiyo.models.checkpoint import checksum, load
from tamiyo.models.conformal import NOISE_FLOOR
from tamiyo.models.learning import learner as module
from tamiyo.models.learning.hyperparameters import LearningSettings
from tamiyo.models.learning.learner import RECENT, Learner, Taken
from tests.support.experiences import BLUEPRINTS, make_experience, small_policy

# Two gradient steps an update: what is learned does not matter here.
SETTINGS = LearningSettings(
    fresh_batch=4, minimum_batch=3, batch_size=8, minibatch_size=4, update_epochs=1, learning_rate=3e-3
)


def learner(**fields):
    return Learner(small_policy(), SETTINGS.model_copy(update=fields))


def stream(count, start=0):
    return [
        make_experience(number, action=number % 5, reward=0.6 if number % 5 == 1 else -0.3, policy_version=0)
        for number in range(start, start + count)
    ]


def checkpoint(made, offsets=None):
    header = made.header(name="tamiyo", offsets=offsets or {}, time_ms=0, parent=None)
    return made.checkpoint(header)


# Taking


def test_an_experience_counts_once_and_its_newest_revision_counts():
    made = learner()
    assert made.take(make_experience("a", revision=0, complete=False, reward=0.1)) == Taken.FRESH
    assert made.take(make_experience("a", revision=0, complete=False, reward=0.9)) == Taken.REPEATED
    assert made.take(make_experience("a", revision=2, complete=False, reward=0.2)) == Taken.FRESH  # still waiting
    assert made.take(make_experience("a", revision=1, complete=False, reward=0.9)) == Taken.REPEATED
    assert (made.experiences, made.waiting) == (1, 1)
    made.learn(stream(3))
    assert made.replay.get(make_experience("a").experience_id).reward == 0.2
    assert made.experiences == 4
    assert made.taken == {Taken.FRESH: 5, Taken.REPEATED: 2}


def test_after_an_update_only_the_completing_revision_is_fresh_again():
    made = learner()
    made.learn([make_experience("a", revision=0, complete=False, reward=0.1), *stream(3)])
    assert made.updates == 1
    assert made.take(make_experience("a", revision=1, complete=False, reward=0.2)) == Taken.REVISED
    assert made.waiting == 0
    assert made.replay.get(make_experience("a").experience_id).reward == 0.2
    assert made.take(make_experience("a", revision=2, complete=True, reward=0.3)) == Taken.FRESH
    assert made.take(make_experience("a", revision=3, complete=True, reward=0.4)) == Taken.FRESH
    assert (made.waiting, made.experiences) == (1, 4)


def test_a_complete_experience_that_was_learned_is_only_revised():
    made = learner()
    made.learn(stream(4))
    assert made.take(make_experience(0, revision=1)) == Taken.REVISED
    assert made.take(make_experience(0, revision=1)) == Taken.REPEATED


def test_what_does_not_fit_is_counted_by_reason_and_changes_nothing():
    made = learner()
    wrong = make_experience("a").model_copy(update={"mask": b"\1"})
    strange = make_experience("b").model_copy(update={"kinds": ["fly"]})
    assert [made.take(each) for each in (wrong, strange, strange)] == [Taken.REJECTED] * 3
    assert made.rejected == {"mask": 1, "kinds": 2}
    assert (made.experiences, made.waiting, len(made.replay)) == (0, 0, 0)
    assert made.take(make_experience("a")) == Taken.FRESH  # a rejected revision is not one that was seen


def test_only_so_many_ids_are_kept(monkeypatch):
    monkeypatch.setattr(module, "KNOWN_IDS", 3)
    made = learner(fresh_batch=100)
    for each in stream(5):
        made.take(each)
    assert made.take(stream(5)[4]) == Taken.REPEATED
    assert made.take(stream(1)[0]) == Taken.FRESH


# When to learn


def test_a_whole_batch_of_fresh_experiences_triggers_an_update():
    made = learner()
    assert made.learn(stream(3)) is None
    assert not made.ready()
    report = made.learn(stream(1, start=3))
    assert (report.accepted, report.version, report.fresh, report.replayed) == (True, 1, 4, 0)
    assert (made.version, made.updates, made.waiting, len(made.replay)) == (1, 1, 0, 4)


def test_what_waited_long_enough_learns_with_what_replay_adds():
    made = learner()
    assert made.learn(stream(2), overdue=True) is None  # two are no update
    made.learn(stream(2, start=2))
    assert made.updates == 1
    report = made.learn(stream(1, start=4), overdue=True)
    assert (report.fresh, report.replayed) == (1, 4)
    assert made.learn((), overdue=True) is None  # nothing fresh


def test_an_update_is_filled_up_from_replay_and_never_with_what_is_fresh():
    made = learner(batch_size=6)
    made.learn(stream(4))
    made.learn(stream(4, start=4))
    assert made.last.replayed == 2
    made.learn(stream(2, start=8), overdue=True)
    assert (made.last.fresh, made.last.replayed) == (2, 4)


def test_experiences_of_policies_too_old_leave_replay():
    made = learner(max_age=2)  # and every experience is of version 0
    sizes = []
    for number in range(4):
        made.learn(stream(4, start=4 * number))
        sizes.append((made.version, made.last.replayed, len(made.replay)))
    # The third update's own are of a policy three versions old once it is made; the fourth drops the rest.
    assert sizes == [(1, 0, 4), (2, 4, 8), (3, 4, 8), (4, 0, 0)]


# A bad update


def test_a_rejected_update_leaves_the_policy_and_keeps_its_experiences():
    made = learner()
    made.learn(stream(4))
    before = checkpoint(made)
    made._updater.settings = SETTINGS.model_copy(update={"max_loss": 1e-9})
    report = made.learn(stream(4, start=4))
    assert not report.accepted
    assert "minibatches had a loss that was above" in report.reason
    assert (made.version, made.updates, made.rolled_back, made.waiting, len(made.replay)) == (1, 1, 1, 0, 8)
    was, _, state = load(before)
    now, header, state_now = load(checkpoint(made))
    assert all(bool((value == now.state_dict()[name]).all()) for name, value in was.state_dict().items())
    assert plain(state) == plain(state_now)
    assert header.metrics == {}  # of no update that was accepted
    made._updater.settings = SETTINGS
    assert made.learn(stream(4, start=8)).accepted
    assert (made.version, made.updates, made.rolled_back) == (2, 2, 1)


# The same again


def test_the_same_experiences_give_the_same_bytes():
    one, other = learner(), learner()
    for made in (one, other):
        for each in stream(14):
            made.learn([each])
    assert one.updates == 3
    assert checksum(checkpoint(one)) == checksum(checkpoint(other))


def resume(data, **fields):
    policy, header, state = load(data)
    return Learner(
        policy,
        SETTINGS.model_copy(update=fields),
        version=header.version,
        experiences=header.experiences,
        updates=header.updates,
        state=state,
    )


@pytest.mark.parametrize("killed_after", [4, 6, 9])
def test_from_a_checkpoint_it_goes_on_as_if_it_had_never_stopped(killed_after):
    # Without replay, whose priorities a restart measures anew: see the next test.
    experiences = stream(16)
    whole = learner(batch_size=4)
    for each in experiences:
        whole.learn([each])
    made, saved = learner(batch_size=4), None
    for offset, each in enumerate(experiences[:killed_after]):
        if made.learn([each]) is not None:
            saved = checkpoint(made, {"0": offset + 1})
    resumed = resume(saved, batch_size=4)
    learned_before = load(saved)[1].offsets["0"]
    for each in experiences[:learned_before]:
        resumed.restore_experience(each)  # the returns of the following decisions do not depend on them, theirs do
    for each in experiences[learned_before:]:
        resumed.learn([each])
    assert (resumed.experiences, resumed.updates, resumed.version) == (16, 4, 4)
    assert learned(resumed) == learned(whole)


def learned(made):
    """Every tensor and number of a checkpoint, but for the statistics over what one process has seen."""
    policy, header, state = load(checkpoint(made))
    tensors = {name: value.tolist() for name, value in policy.state_dict().items()}
    losses = {name: value for name, value in header.metrics.items() if name.startswith("losses/")}
    return tensors, header.model_copy(update={"metrics": losses}), plain(state)


def plain(state):
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    if isinstance(state, list):
        return [plain(value) for value in state]
    return state.tolist() if isinstance(state, torch.Tensor) else state


def test_a_restored_experience_fills_replay_and_counts_no_second_time():
    made = learner()
    made.learn(stream(4))
    resumed = resume(checkpoint(made, {"0": 4}))
    for each in stream(4):
        assert resumed.restore_experience(each) == Taken.FRESH
    assert (resumed.experiences, resumed.updates, resumed.waiting, len(resumed.replay)) == (4, 1, 0, 4)
    assert not resumed.taken
    assert [resumed.take(each) for each in stream(4)] == [Taken.REPEATED] * 4
    resumed.learn(stream(4, start=4))
    assert (resumed.experiences, resumed.last.replayed) == (8, 4)


def test_a_number_is_never_given_to_two_policies():
    policy, header, state = load(checkpoint(learner()))
    made, other = (
        Learner(copy.deepcopy(policy), SETTINGS, version=3, newest=7, experiences=header.experiences, state=state)
        for _ in range(2)
    )
    made.renumber()
    assert made.version == 8
    made.learn(stream(4))
    assert made.version == 9
    other.learn(stream(4))
    assert (other.version, other.last.version) == (8, 8)


# Statistics


def test_statistics_by_hand():
    made = learner()
    assert made.statistics() == {
        "charts/episodes": 0, "charts/replay": 0, "charts/experiences": 0, "charts/rolled_back": 0,
    }  # fmt: skip
    made.learn(
        [
            make_experience("a", reward=0.5, success=True),
            make_experience("b", reward=-0.1, success=False),
            make_experience("c", reward=0.0, success=None, complete=False),
            make_experience("d", reward=0.2, success=True),
        ]
    )
    found = made.last.metrics
    assert found["charts/mean_reward"] == pytest.approx(0.15)
    assert found["charts/success_rate"] == pytest.approx(2 / 3)
    assert (found["charts/episodes"], found["charts/experiences"]) == (3, 4)
    made.learn([make_experience(number, reward=1.0) for number in range(RECENT)])
    assert made.statistics()["charts/mean_reward"] == 1.0


def test_calibration_is_scored_before_anything_is_learned_from_the_rewards():
    made = learner()
    experiences = stream(4)
    outputs = [made.policy(each.graph) for each in (module.Example.of(e, made.policy.kinds, 3) for e in experiences)]
    expected = [
        abs(e.reward - float(output.predicted_reward[e.action_index].detach()))
        / (float(output.spread[e.action_index].detach()) + NOISE_FLOOR)
        for e, output in zip(experiences, outputs, strict=True)
    ]
    report = made.learn(experiences)
    assert made.policy.calibration.scores == pytest.approx(expected, rel=1e-4)
    assert report.metrics["charts/prediction_error"] == pytest.approx(
        np.mean(
            [
                abs(e.reward - float(o.predicted_reward[e.action_index].detach()))
                for e, o in zip(experiences, outputs, strict=True)
            ]
        ),
        rel=1e-4,
    )
    assert 0 <= report.metrics["charts/coverage"] <= 1
    assert all(math.isfinite(value) for value in report.metrics.values())


def test_the_checkpoint_has_versions_offsets_and_counts():
    made = learner()
    made.learn(stream(4))
    header = made.header(name="mine", offsets={"0": 4, "3": 9}, time_ms=12, parent=0)
    served, found, state = load(made.checkpoint(header))
    assert found == header
    assert (found.version, found.parent_version, found.experiences, found.updates) == (1, 0, 4, 1)
    assert found.offsets == {"0": 4, "3": 9}
    assert found.metrics == made.last.metrics
    assert served.config.blueprints == BLUEPRINTS
    assert set(state) == {"optimizer", "scheduler", "proximal"}
