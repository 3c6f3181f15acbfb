from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.models.learning.replay import SMALLEST_PRIORITY, Replay
from tests.support.experiences import make_example

BASE = make_example()
advantages = st.lists(st.floats(-2, 2), min_size=1, max_size=30)


def example(name, **fields):
    return replace(BASE, experience_id=str(name), **fields)


def filled(values, **settings):
    replay = Replay(**settings)
    for index, value in enumerate(values):
        replay.add(example(index), value)
    return replay


def test_the_probabilities_by_hand():
    replay = filled([0.5, -0.25, 0.0], exponent=0.5)
    examples, found = replay.probabilities()
    assert [each.experience_id for each in examples] == ["0", "1", "2"]
    weights = np.array([0.501**0.5, 0.251**0.5, 0.001**0.5])
    assert found == pytest.approx(weights / weights.sum())


def test_the_corrections_by_hand():
    # All three are drawn; N p_i to the power of -0.4, over the largest, which is the least likely one's.
    replay = filled([0.999, 0.249, 0.249], exponent=0.5, correction=0.4)
    probabilities = {"0": 0.5, "1": 0.25, "2": 0.25}
    drawn, corrections = replay.sample(3, np.random.default_rng(0))
    assert sorted(each.experience_id for each in drawn) == ["0", "1", "2"]
    expected = [(3 * probabilities[each.experience_id]) ** -0.4 / 0.75**-0.4 for each in drawn]
    assert corrections == pytest.approx(expected)
    assert max(corrections) == 1.0


@given(advantages, st.floats(0, 1))
def test_probabilities_are_a_distribution_and_grow_with_the_surprise(values, exponent):
    _, found = filled(values, exponent=exponent).probabilities()
    assert found.sum() == pytest.approx(1)
    assert (found > 0).all()
    in_order = found[np.argsort(np.abs(values), kind="stable")]
    assert (np.diff(in_order) >= -1e-12).all()


@given(advantages, st.integers(0, 40), st.floats(0, 1), st.integers(0, 2**32))
def test_draws_differ_and_corrections_undo_the_preference(values, count, correction, seed):
    replay = filled(values, correction=correction)
    drawn, corrections = replay.sample(count, np.random.default_rng(seed))
    assert len(drawn) == len(corrections) == min(count, len(values))
    assert len({each.experience_id for each in drawn}) == len(drawn)
    if drawn:
        assert corrections.max() == 1.0
        assert (corrections > 0).all()
        surprise = np.abs([values[int(each.experience_id)] for each in drawn])
        assert (np.diff(corrections[np.argsort(surprise, kind="stable")]) <= 1e-12).all()


def test_an_exponent_of_zero_is_uniform_and_needs_no_correction():
    replay = filled([0.9, 0.1, 0.0], exponent=0.0)
    assert replay.probabilities()[1] == pytest.approx([1 / 3] * 3)
    assert replay.sample(2, np.random.default_rng(0))[1] == pytest.approx([1, 1])


def test_the_first_draw_comes_as_often_as_it_should():
    replay = filled([1.0, 0.2, 0.05], exponent=0.6)
    _, probabilities = replay.probabilities()
    rng = np.random.default_rng(3)
    first = [int(replay.sample(1, rng)[0][0].experience_id) for _ in range(4000)]
    assert np.bincount(first, minlength=3) / 4000 == pytest.approx(probabilities, abs=0.025)


def test_the_same_generator_draws_the_same():
    values = np.linspace(-1, 1, 20)
    one, two = (filled(values).sample(7, np.random.default_rng(5)) for _ in range(2))
    assert [each.experience_id for each in one[0]] == [each.experience_id for each in two[0]]
    assert one[1].tolist() == two[1].tolist()


def test_what_is_excluded_is_not_drawn():
    replay = filled([1.0, 0.2, 0.3])
    drawn, _ = replay.sample(3, np.random.default_rng(0), exclude={"0"})
    assert sorted(each.experience_id for each in drawn) == ["1", "2"]
    assert replay.sample(3, np.random.default_rng(0), exclude={"0", "1", "2"})[0] == []
    assert Replay().sample(3, np.random.default_rng(0))[0] == []


def test_a_newer_revision_replaces_an_older_one_and_never_the_reverse():
    replay = Replay()
    assert replay.add(example("a", revision=1, reward=0.1), 0.1)
    assert not replay.add(example("a", revision=1, reward=0.9), 0.9)
    assert not replay.add(example("a", revision=0, reward=0.9), 0.9)
    assert replay.get("a").reward == 0.1
    assert replay.add(example("a", revision=2, reward=0.5), 0.5)
    assert replay.get("a").reward == 0.5
    assert len(replay) == 1
    assert replay.get("b") is None


def test_the_oldest_arrivals_make_room():
    replay = filled([0.1] * 5, capacity=3)
    assert [each.experience_id for each in replay.probabilities()[0]] == ["2", "3", "4"]
    replay.add(example("2", revision=1), 0.1)  # a new revision is a new arrival
    replay.add(example("5"), 0.1)
    assert [each.experience_id for each in replay.probabilities()[0]] == ["4", "2", "5"]


def test_what_older_policies_decided_expires():
    replay = Replay()
    for version in (3, 4, 5):
        replay.add(example(version, policy_version=version), 0.1)
    assert replay.expire(4) == 1
    assert [each.experience_id for each in replay.probabilities()[0]] == ["4", "5"]
    assert replay.expire(4) == 0


def test_a_new_advantage_is_a_new_priority():
    replay = filled([0.1, 0.1])
    replay.reprioritise([example(0), example("gone")], np.array([-0.8, 0.5]))
    assert replay.get("gone") is None
    ratio = ((0.8 + SMALLEST_PRIORITY) / (0.1 + SMALLEST_PRIORITY)) ** 0.6
    found = replay.probabilities()[1]
    assert found[0] / found[1] == pytest.approx(ratio)
