"""Whether a log supports an evaluation: a policy cannot be judged by actions that were hardly ever tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tamiyo.evaluation.offline.decisions import LoggedDecision
from tamiyo.evaluation.offline.estimators import Integers, Interval, Terms, effective_size, interval, run_sums


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a log must provide for a verdict."""

    effective_sample_size: float = 50.0
    effective_runs: float = 20.0
    """Below some twenty clusters, a bootstrap over clusters gives intervals that are too narrow."""
    covered: float = 0.9
    """Reward lies in [-1, 1]: what the other 10 % of the probability earns could change a value by 0.2."""
    weight_limit: float = 50.0
    """Weight above which an action counts as not covered: the log took it in less than 2 % of the cases in which the
    policy would."""


@dataclass(frozen=True, slots=True)
class Support:
    """How well a log supports the evaluation of one policy."""

    effective_sample_size: float
    """(sum of w)^2 / sum of w^2 over the decisions."""
    effective_runs: float
    """The same over the runs' sums of w: as many equally informative runs."""
    covered: float
    """Share of the policy's probability on actions whose weight is at most the limit."""
    largest_weight: float
    above_limit: float
    """Share of the decisions whose weight is above the limit."""
    mean_weight: Interval | None
    """1 in expectation; None with fewer than two runs."""

    def shortfalls(self, thresholds: Thresholds) -> list[str]:
        """Return what is below its threshold, in words; empty where the log supports a verdict."""
        found = []
        if self.effective_sample_size < thresholds.effective_sample_size:
            found.append(
                f"effective sample size {_floor(self.effective_sample_size)} of at least "
                f"{thresholds.effective_sample_size:g}"
            )
        if self.effective_runs < thresholds.effective_runs:
            found.append(f"{_floor(self.effective_runs)} effective runs of at least {thresholds.effective_runs:g}")
        if self.covered < thresholds.covered:
            found.append(
                f"{_floor(100 * self.covered)} % of the probability on covered actions of at least "
                f"{100 * thresholds.covered:g} %"
            )
        return found


def support(decisions: Sequence[LoggedDecision], position: int, weight_limit: float) -> Support:
    """Return how well a log supports the evaluation of a policy.

    Args:
        decisions: The log.
        position: The policy's position in `LoggedDecision.targets`.
        weight_limit: Weight above which an action counts as not covered.
    """
    weight = np.array([each.weight(position) for each in decisions])
    run = run_numbers(decisions)
    covered = [
        each.targets[position][each.targets[position] <= weight_limit * each.behaviour].sum()
        / each.targets[position].sum()
        for each in decisions
    ]
    return Support(
        effective_sample_size=effective_size(weight),
        effective_runs=effective_size(run_sums(run, weight)),
        covered=float(np.mean(covered)),
        largest_weight=float(weight.max()),
        above_limit=float((weight > weight_limit).mean()),
        mean_weight=interval(run, Terms(weight, np.ones_like(weight))) if run.max() > 0 else None,
    )


def run_numbers(decisions: Sequence[LoggedDecision]) -> Integers:
    """Return the number of each decision's run, from 0 in order of appearance, [n]."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(each.run_id, len(numbers)) for each in decisions], np.int64)


def _floor(value: float) -> str:
    """Return a number rounded down, so that what is below a threshold never shows as the threshold."""
    return f"{np.floor(value * 10) / 10:g}" if value < 10 else f"{np.floor(value):g}"
