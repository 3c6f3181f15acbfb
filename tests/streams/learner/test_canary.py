"""The canary: a planted worse version is found from live rewards, and an equal one is left alone."""

import numpy as np
import pytest

from tamiyo.models.learning.example import Example
from tamiyo.streams.learner.canary import Canary, LiveDifference
from tamiyo.streams.settings import ReleaseSettings
from tests.support.experiences import make_example, small_policy

REFERENCE = small_policy()
PROTOTYPE = make_example()


def decisions(
    rng: np.random.Generator, version: int, count: int, mean: float, *, spread: float = 0.2, runs: int = 4
) -> list[Example]:
    """Rewarded decisions of a version."""
    rewards = np.clip(rng.normal(mean, spread, count), -1, 1).tolist()
    return [
        Example(**{
            **{name: getattr(PROTOTYPE, name) for name in Example.__slots__},
            "experience_id": f"{version}-{rng.integers(2**62)}",
            "policy_version": version,
            "reward": reward,
            "run_id": f"run-{number % runs}",
        })
        for number, reward in enumerate(rewards)
    ]  # fmt: skip


def canary(**fields: float) -> Canary:
    return Canary(ReleaseSettings(**fields))  # type: ignore[arg-type]


def first_alarm(made: Canary, examples: list[Example]) -> int | None:
    """Return after how many decisions the new side is found worse; None if it is not."""
    for count, example in enumerate(examples, start=1):
        made.record(example)
        if count % 16 == 0 and made.worse(made.difference()):
            return count
    return None


def test_a_worse_version_is_found_and_a_better_one_is_not() -> None:
    found: dict[float, int | None] = {}
    for mean in (-0.3, 0.3):
        rng = np.random.default_rng(0)
        made = canary()
        for example in decisions(rng, 0, 300, 0.1):
            made.record(example)
        made.begin(0, REFERENCE)
        found[mean] = first_alarm(made, decisions(rng, 1, 512, mean))
    assert found[-0.3] is not None
    assert found[-0.3] <= 200
    assert found[0.3] is None


def test_equal_versions_rarely_raise_an_alarm() -> None:
    """100 tests of 256 decisions, checked after every 16: at alpha = 0.1, at most ten may fail."""
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(100):
        made = canary(canary_alpha=0.1, canary_decisions=256)
        made.begin(0, REFERENCE)
        for example in decisions(rng, 0, 128, 0.1, spread=0.4):
            made.record(example)
        alarms += first_alarm(made, decisions(rng, 1, 256, 0.1, spread=0.4)) is not None
    assert alarms <= 10


def test_one_run_that_goes_wrong_rolls_nothing_back() -> None:
    rng = np.random.default_rng(0)
    made = canary()
    for example in decisions(rng, 0, 300, 0.1):
        made.record(example)
    made.begin(0, REFERENCE)
    for example in decisions(rng, 1, 300, -0.8, runs=2):
        made.record(example)
    found = made.difference()
    assert found.upper < 0
    assert (found.runs, made.worse(found)) == (2, False)
    made.record(decisions(rng, 1, 3, -0.8)[-1])
    assert made.worse(made.difference())


def test_a_decision_counts_once_with_its_first_reward() -> None:
    made = canary()
    made.begin(0, REFERENCE)
    for revision, reward in enumerate((0.5, -1.0)):
        made.record(make_example("a", reward=reward, revision=revision, policy_version=1))
    found = made.difference()
    assert (found.new, found.old) == (1, 0)
    assert found.mean > 0
    assert made.difference() == found  # nothing new


def test_what_the_reference_expects_counts_for_neither_side() -> None:
    """Late windows bring less reward, whoever decides there."""
    expecting = small_policy()
    expecting.get_parameter("rewards.node_last_bias").data.fill_(0.4)
    expecting.get_parameter("rewards.no_op_last_bias").data.fill_(0.4)
    means = []
    for reference in (small_policy(), expecting):
        made = canary()
        made.begin(0, reference)
        made.record(make_example("a", reward=0.4, policy_version=1))
        means.append(made.difference().mean)
    assert means[0] - means[1] == pytest.approx(0.4, abs=1e-5)


def test_a_finished_test_makes_the_newest_version_the_reference() -> None:
    rng = np.random.default_rng(3)
    made = canary(canary_decisions=64)
    made.begin(0, REFERENCE)
    for example in decisions(rng, 0, 40, 0.0) + decisions(rng, 3, 63, 0.0):
        made.record(example)
    made.difference()
    assert not made.complete
    made.record(make_example("last", policy_version=4))
    made.difference()
    assert made.complete
    made.begin(4, REFERENCE)
    found = made.difference()
    assert (found.reference, found.new, found.old, made.complete) == (4, 0, 104, False)


def test_decisions_of_rolled_back_versions_count_no_more() -> None:
    rng = np.random.default_rng(3)
    made = Canary(ReleaseSettings(), rolled_back=[1])
    made.begin(0, REFERENCE)
    for version in (0, 1, 2):
        for example in decisions(rng, version, 10, 0.0):
            made.record(example)
    found = made.difference()
    assert (found.new, found.old) == (10, 10)
    made.exclude([2])
    made.begin(0, REFERENCE)
    for example in decisions(rng, 2, 10, 0.0):
        made.record(example)
    found = made.difference()
    assert (found.new, found.old, made.rolled_back) == (0, 10, (1, 2))


def test_without_alpha_nothing_is_tested() -> None:
    made = canary(canary_alpha=0)
    made.begin(0, REFERENCE)
    made.record(make_example("a", policy_version=1))
    assert made.difference().new == 0


def test_the_difference_reads_as_a_sentence() -> None:
    found = LiveDifference(reference=4, mean=-0.3, upper=-0.01, new=120, old=300, runs=5)
    assert str(found) == (
        "-0.300 reward a decision relative to version 4 and before, at most -0.010, "
        "from 120 decisions of 5 runs against 300"
    )
