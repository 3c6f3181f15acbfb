"""Judge the rewards of logged traffic by the truth of its twins: one row a decision, one row a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from tamiyo.evaluation.lab.cases import evidence_of, rewards
from tamiyo.evaluation.lab.fit import TrainingCase
from tamiyo.evaluation.lab.hosts import HOSTS
from tamiyo.evaluation.lab.traffic import ALONE, Traffic
from tamiyo.evaluation.lab.truth import costs, objective, truths
from tamiyo.host._reference.tasks import HELD_OUT_TASKS, LAB_TASKS
from tamiyo.streams.stages.rewards.estimator import RuleEstimator
from tamiyo.streams.stages.rewards.fitted import GAIN, NEAR, FittedEstimator

HORIZON = 300
"""Steps of the near effect that the estimator is fitted to."""
KNOWN_TASKS = (*LAB_TASKS, *HOSTS)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Judged:
    """An executed adaptation: what its rewards say, and what it was. Nats of log loss; NaN where there is no twin."""

    task: str
    policy: str
    seed: int
    decision_id: str
    type: str
    layer_id: str
    blueprint: str
    step: int
    true_gain: float
    """In the objective, without costs."""
    true_worth: float
    """What the decision changed in the objective under the run's policy, costs included."""
    true_near: float
    """At HORIZON steps, no later adaptation in either twin."""
    true_near_100: float
    true_near_600: float
    true_near_equal_compute: float
    repeated_gain: float
    """The true gain on another order of the data."""
    reordered_worth: float
    """The true worth on another order of the data."""
    redrawn_worth: float
    """The true worth on a third order of the data, with another random stream of the policy."""
    hindsight_worth: float
    """The true worth where only the run without the decision is measured again."""
    cost: float
    gain: float
    """As the final reward estimates it."""
    gains: list[float]
    """As it was estimated at the end of each span that was seen."""
    half_width: float
    near: float
    near_half_width: float
    near_with_twin: float
    """The estimate where a shadow twin measured the adaptation, which is exactly its near effect."""
    gain_with_twin: float
    total: float
    """The final reward, in [-1, 1]."""
    components: dict[str, float]
    """Of the final reward, before weights."""
    rule_total: float
    """What the rule that the estimator replaced would give."""


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """A run: the sum of its rewards' worths, and what it gained over never adapting, costs included; nats."""

    task: str
    policy: str
    seed: int
    adaptations: int
    sum_of_worths: float
    half_width: float
    """Of the sum: the sum of the half-widths."""
    true_gain: float
    final_loss: float
    """Validation loss at the end, at equal steps."""
    best_loss: float
    slower: float
    """Computed time of the run / of never adapting."""


def judge(traffic: Traffic, estimator: FittedEstimator) -> Iterator[Judged]:
    """Yield every executed adaptation of a run."""
    final = rewards(traffic, estimator)
    rule = rewards(traffic, RuleEstimator())
    seen = evidence_of(traffic)
    job = traffic.job
    for truth in truths(traffic):
        if truth.decision_id not in seen:
            continue
        analysis = final[truth.decision_id]
        values = seen[truth.decision_id][-1]
        near = _known(truth.near.get(HORIZON))
        plain, near_half_width = estimator.estimate(values), estimator.near_half_width(values)
        measured = estimator.estimate({**values, "twin": near})
        yield Judged(
            task=job.task,
            policy=job.policy,
            seed=job.seed,
            decision_id=truth.decision_id,
            type=truth.adaptation.type,
            layer_id=truth.adaptation.layer_id,
            blueprint=truth.adaptation.blueprint,
            step=truth.adaptation.step,
            true_gain=_known(truth.gain),
            true_worth=_known(truth.worth),
            true_near=near,
            true_near_100=_known(truth.near.get(100)),
            true_near_600=_known(truth.near.get(600)),
            true_near_equal_compute=_known(truth.near_at_equal_compute),
            repeated_gain=_known(truth.repeated),
            reordered_worth=_known(truth.reordered_worth),
            redrawn_worth=_known(truth.redrawn_worth),
            hindsight_worth=_known(truth.hindsight_worth),
            cost=truth.cost,
            gain=plain.value,
            gains=[estimator.estimate(each).value for each in seen[truth.decision_id]],
            half_width=_known(analysis.worth_half_width),
            near=_known(plain.near),
            near_half_width=near_half_width,
            near_with_twin=near,
            gain_with_twin=math.nan if math.isnan(near) else measured.value,
            total=analysis.total,
            components=analysis.components,
            rule_total=rule[truth.decision_id].total,
        )


def judge_run(traffic: Traffic, estimator: FittedEstimator, never: float) -> JudgedRun:
    """Return what a run's rewards add up to; `never` is the objective of the same run without adaptations."""
    final = rewards(traffic, estimator).values()
    result = traffic.result
    return JudgedRun(
        task=traffic.job.task,
        policy=traffic.job.policy,
        seed=traffic.job.seed,
        adaptations=sum(each.status == "executed" for each in result.adaptations),
        sum_of_worths=sum(each.worth or 0.0 for each in final),
        half_width=sum(each.worth_half_width or 0.0 for each in final),
        true_gain=objective(result) - never - costs(result),
        final_loss=result.curve.validation[-1],
        best_loss=min(result.curve.validation),
        slower=result.curve.compute[-1] / result.compute,
    )


def never_objective(traffic: Traffic) -> float | None:
    """Return the objective of the run without adaptations: its own, or its first branch's; None if there is none."""
    executed = [each for each in traffic.result.adaptations if each.status == "executed"]
    if not executed:
        return objective(traffic.result)
    branch = traffic.branch(executed[0].decision_id, ALONE)
    return None if branch is None else objective(branch)


def training_cases(traffic: Traffic) -> Iterator[TrainingCase]:
    """Yield what an estimator is fitted to: the evidence at every span's end, with and without a shadow twin's gain."""
    seen = evidence_of(traffic)
    run = f"{traffic.job.task}-{traffic.job.seed}"  # runs of one seed share a network and its data
    for truth in truths(traffic):
        targets = {}
        if truth.gain is not None:
            targets[GAIN] = truth.gain
        if HORIZON in truth.near:
            targets[NEAR] = truth.near[HORIZON]
        if not targets:
            continue
        for values in seen.get(truth.decision_id, []):
            yield TrainingCase(traffic.job.task, run, values, targets)
            if NEAR in targets and GAIN in targets:
                yield TrainingCase(traffic.job.task, run, {**values, "twin": targets[NEAR]}, {GAIN: targets[GAIN]})


def agreement(estimated: Array, true: Array, half_width: Array | None = None) -> dict[str, Any]:
    """Return n, Pearson and Spearman with 95 % bootstrap intervals, means, and coverage, where both are known."""
    known = np.isfinite(estimated) & np.isfinite(true)
    x, y = estimated[known], true[known]
    found: dict[str, Any] = {"n": len(x)}
    if len(x) < 5 or x.std() == 0 or y.std() == 0:
        return found
    found["pearson"] = float(stats.pearsonr(x, y).statistic)
    found["pearson_95"] = _interval(x, y)
    found["spearman"] = float(stats.spearmanr(x, y).statistic)
    found["mean_estimated"], found["mean_true"] = float(x.mean()), float(y.mean())
    if half_width is not None:
        found["coverage"] = float(np.mean(np.abs(x - y) <= half_width[known]))
    return found


def _interval(x: Array, y: Array) -> list[float]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(1000):
        chosen = rng.integers(len(x), size=len(x))
        if x[chosen].std() > 0 and y[chosen].std() > 0:
            found.append(np.corrcoef(x[chosen], y[chosen])[0, 1])
    low, high = np.quantile(found, [0.025, 0.975])
    return [float(low), float(high)]


def rows(items: Iterable[Judged | JudgedRun]) -> list[dict[str, Any]]:
    """Return rows as plain values."""
    return [asdict(each) for each in items]


def column(table: Sequence[Mapping[str, Any]], name: str) -> Array:
    """Return a column as floats."""
    return np.array([float(row[name]) for row in table])


def is_held_out(task: str) -> bool:
    """Return whether no estimator is fitted to the task."""
    return task in HELD_OUT_TASKS


def _known(value: float | None) -> float:
    return math.nan if value is None else float(value)
