"""Paired comparisons: which runs they need, what they measure, and their intervals."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tamiyo.evaluation.lab.compare import Estimate, Pair, at_equal_steps, compare, estimate, jobs, pairs, read, write
from tamiyo.evaluation.lab.run import Adaptation, Curve, RunResult
from tamiyo.evaluation.lab.traffic import Job, Traffic
from tamiyo.evaluation.lab.truth import objective


def result(losses: list[float], seconds: float, *, seed: int = 0, loads: int = 0) -> RunResult:
    """Return a run with the losses at 50, 100, ... steps, each 50 steps costing `seconds`; the plain one costs 1."""
    steps = [50 * (index + 1) for index in range(len(losses))]
    curve = Curve(steps, [seconds * (i + 1) for i in range(len(losses))], losses, losses, [10 * loads] * len(losses))
    adaptations = [Adaptation(str(i), 60, "load_kernel", "0", "low_rank", "executed") for i in range(loads)]
    return RunResult("digits", seed, seed, steps[-1], 100, 50, float(len(losses)), curve, adaptations)


def run(policy: str, found: RunResult) -> Traffic:
    return Traffic(Job("digits", policy, found.seed), found)


def test_the_jobs_pair_every_run_with_one_that_never_adapts() -> None:
    found = jobs(["a", "b"], ["heuristic", "never", "heuristic"], [0, 1], steps=300)
    assert len(found) == len(set(found)) == 8
    assert {each.policy for each in found} == {"never", "heuristic"}
    assert all((each.alone, each.steps) == (0.0, 300) for each in found)


def test_a_pair_measures_at_equal_compute_and_at_equal_steps() -> None:
    never = result([1.0, 0.8, 0.6, 0.5], 1.0)
    grown = result([1.0, 0.7, 0.5, 0.4], 1.5, loads=1)  # 150 of its steps cost more than 200
    (pair,) = pairs([run("never", never), run("heuristic", grown)])
    assert pair.equal_compute == pytest.approx(math.log(0.5) - math.log(0.7))
    assert pair.equal_steps == pytest.approx(math.log(0.5) - math.log(0.4))
    assert pair.cost == pytest.approx(0.01 + 0.05 * 10 / 100)
    assert (pair.adaptations, pair.slower) == (1, 1.5)
    assert at_equal_steps(never) == objective(never)


def test_a_run_without_its_pair_is_left_out() -> None:
    found = result([1.0, 0.5], 1.0)
    other = replace(found, seed=1)
    assert list(pairs([run("heuristic", found), run("never", other)])) == []
    assert len(list(pairs([run("heuristic", found), run("never", other), run("never", found)]))) == 1


def test_the_interval_of_a_mean_covers_it_and_repeats() -> None:
    values = np.random.default_rng(1).normal(0.3, 0.1, 30).tolist()
    found = estimate(values)
    assert found.low < found.mean < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.1 / math.sqrt(30), rel=0.4)
    assert found == estimate(values)
    assert str(Estimate(0.1, -0.2, 0.3)) == "+0.100 [-0.200, +0.300]"


def test_intervals_cover_the_truth_about_as_often_as_claimed() -> None:
    rng = np.random.default_rng(2)
    found = [estimate(rng.normal(0.0, 1.0, 20).tolist()) for _ in range(100)]
    assert 85 <= sum(each.low <= 0.0 <= each.high for each in found) <= 100


def test_few_or_equal_values_have_no_spread_to_resample() -> None:
    assert str(estimate([0.5])) == "+0.500"
    assert math.isnan(estimate([0.5, 0.7]).low)
    assert estimate([0.25] * 5) == Estimate(0.25, 0.25, 0.25)


def test_comparisons_are_means_over_pairs() -> None:
    made = [Pair("digits", "heuristic", seed, 0.1 * seed, 0.2, 0.01 * seed, seed, 1.0 + seed) for seed in range(4)]
    other = [Pair("digits", "pump", 0, -1.0, -1.0, 0.1, 9, 2.0)]
    first, second = compare(made + other)
    assert (first.policy, first.pairs, first.adaptations, first.slower) == ("heuristic", 4, 1.5, 2.5)
    assert first.equal_compute.mean == pytest.approx(0.15)
    assert first.equal_steps.mean == first.equal_steps.high == 0.2
    assert first.cost == pytest.approx(0.015)
    assert (second.policy, second.pairs, second.equal_compute.mean) == ("pump", 1, -1.0)
    assert compare([]) == []


def test_pairs_survive_in_parquet(tmp_path: Path) -> None:
    made = [Pair("digits", "heuristic", seed, 0.1 * seed, 0.2, 0.01, 2, 1.5) for seed in range(3)]
    write(made, tmp_path / "pairs.parquet")
    assert read(tmp_path / "pairs.parquet") == made
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.parquet"]
