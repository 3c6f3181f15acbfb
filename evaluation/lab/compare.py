"""Compare policies with never adapting, on paired seeds: both runs share network, data and their order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from tamiyo.evaluation.common.parquet import write_table
from tamiyo.evaluation.lab.run import RunResult
from tamiyo.evaluation.lab.traffic import Job, Traffic
from tamiyo.evaluation.lab.truth import costs, objective
from tamiyo.schemas.adaptation import OutcomeStatus

NEVER = "never"
RESAMPLES = 9_999
FEWEST = 3
"""Pairs below which there is no interval."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A run under a policy, less the same run without adaptations; nats of log loss, above 0 where the policy gains."""

    task: str
    policy: str
    seed: int
    equal_compute: float
    """Difference of the objective: early-stopped test loss, among the steps that the run without adaptations pays."""
    equal_steps: float
    """The same among all steps: as if a slower step cost nothing."""
    cost: float
    """Costs of the adaptations, nats; not subtracted from the differences."""
    adaptations: int
    """Executed ones."""
    slower: float
    """Computed training time of the whole run / that of never adapting."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % bootstrap interval (BCa); the interval is NaN below three pairs."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.mean:+.3f}"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A policy on a task against never adapting."""

    task: str
    policy: str
    pairs: int
    equal_compute: Estimate
    equal_steps: Estimate
    cost: float
    adaptations: float
    slower: float
    """Means over the pairs."""


def jobs(tasks: Iterable[str], policies: Iterable[str], seeds: Iterable[int], *, steps: int = 0) -> list[Job]:
    """Return the runs to make, never adapting included, without twins; the runs of one pair stand together."""
    names = list(dict.fromkeys([NEVER, *policies]))
    tasks = list(tasks)
    return [Job(task, name, seed, alone=0.0, steps=steps) for seed in seeds for task in tasks for name in names]


def pairs(runs: Iterable[Traffic]) -> Iterator[Pair]:
    """Yield a pair for each run under a policy whose run without adaptations is there too."""
    found = {(run.job.task, run.job.policy, run.job.seed): run.result for run in runs}
    for (task, policy, seed), result in found.items():
        never = found.get((task, NEVER, seed))
        if policy != NEVER and never is not None:
            yield _pair(policy, result, never)


def compare(found: Sequence[Pair]) -> list[Comparison]:
    """Return one comparison for each task and policy, in order of appearance."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for each in found:
        groups.setdefault((each.task, each.policy), []).append(each)
    return [
        Comparison(
            task,
            policy,
            len(group),
            estimate([each.equal_compute for each in group]),
            estimate([each.equal_steps for each in group]),
            cost=float(np.mean([each.cost for each in group])),
            adaptations=float(np.mean([each.adaptations for each in group])),
            slower=float(np.mean([each.slower for each in group])),
        )
        for (task, policy), group in groups.items()
    ]


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of paired differences with its interval; the same values give the same interval."""
    data = np.asarray(values, np.float64)
    mean = float(data.mean())
    if len(data) < FEWEST:
        return Estimate(mean, math.nan, math.nan)
    if np.ptp(data) == 0.0:  # BCa divides by the spread
        return Estimate(mean, mean, mean)
    interval = stats.bootstrap(
        (data,), np.mean, n_resamples=RESAMPLES, rng=np.random.default_rng(0)
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))


def write(found: Sequence[Pair], path: Path) -> None:
    """Write the pairs as Parquet, one row each, whole or not at all."""
    write_table(pa.Table.from_pylist([asdict(each) for each in found], schema=_SCHEMA), path)


def read(path: Path) -> list[Pair]:
    """Return the pairs of a file that `write` wrote."""
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return [Pair(**row) for row in rows]


def at_equal_steps(result: RunResult) -> float:
    """Return minus the log of the early-stopped test loss, whatever the steps cost."""
    return objective(replace(result, compute=math.inf))


def _pair(policy: str, result: RunResult, never: RunResult) -> Pair:
    return Pair(
        task=result.task,
        policy=policy,
        seed=result.seed,
        equal_compute=objective(result) - objective(never),
        equal_steps=at_equal_steps(result) - at_equal_steps(never),
        cost=costs(result),
        adaptations=sum(each.status == OutcomeStatus.EXECUTED for each in result.adaptations),
        slower=result.curve.compute[-1] / never.curve.compute[-1] if never.curve.compute else math.nan,
    )


_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
_SCHEMA = pa.schema([(name, _TYPES[str(field.type)]) for name, field in Pair.__dataclass_fields__.items()])
