"""What each action at a graph would bring, measured: twins take it, and others take none.

At some graphs of a run, the process forks once for each of several actions and once for no_op. All twins go on without
another adaptation, to the end of the run at equal compute. An action's advantage is the objective of its twin less the
objective of no_op's: what the action changes in the run's result, with everything that follows from it. So credit goes
over the run, and it is measured, not estimated (rollouts as in Dimitrakakis and Lagoudakis, "Rollout sampling
approximate policy iteration", 2008).

An adaptation that helps may help more later: a larger network has slower steps, and the first steps of training do not
need them. So other twins wait, and take the best of the tried actions some hundred steps later. no_op is worth what the
best of them gains.

A run that has grown goes on after it has spent what it would have cost without adaptations. Nothing counts from there
on: an adaptation brings nothing but its cost, and no twin has to be trained to know it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tamiyo.evaluation.common.parquet import write_table
from tamiyo.evaluation.lab.baselines import AtOnce, Baseline, Heuristic, Never, baseline
from tamiyo.evaluation.lab.run import Run, RunResult, RunSpec
from tamiyo.evaluation.lab.traffic import file_name
from tamiyo.evaluation.lab.truth import costs, objective
from tamiyo.evaluation.lab.twins import twin
from tamiyo.models.actions import to_action
from tamiyo.models.behaviour import Choice
from tamiyo.schemas.adaptation import DecisionType
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.codec import decode, encode
from tamiyo.streams.stages.rewards.worth import ADAPTATION_COST

EARLY = 6
"""Graphs from the start of a run that are tried at more often: most of a run depends on them."""
HELPS = 0.02
"""Advantage, nats, from which on an action is tried later too."""
DELAYS = (1 / 8, 1 / 4)
"""How much later, as shares of the run's steps."""
TRIED = {
    DecisionType.LOAD_KERNEL: 1.0,
    DecisionType.UNLOAD_KERNEL: 0.5,
    DecisionType.OPTIMIZE_PARAMETERS: 0.1,
    DecisionType.FOSSILIZE_KERNEL: 0.05,
}
"""Weights with which actions are drawn."""


@dataclass(frozen=True, slots=True)
class Point:
    """A graph of a run, and the actions that were tried there."""

    graph: ModelGraph
    mask: npt.NDArray[np.bool_]
    """[actions]."""
    step: int
    without: float
    """Objective after no_op, less costs, nats; NaN if nothing was measured."""
    actions: tuple[int, ...]
    """Positions in the action list; none: nothing was measured."""
    advantages: tuple[float, ...]
    """Of each action over never adapting again: the difference of the objectives, less costs, nats."""
    waiting: float | None = 0.0
    """The same for the best action taken later, at least 0: what no_op is worth. None: not measured."""


@dataclass(frozen=True, slots=True)
class LookaheadJob:
    """A run at some of whose graphs actions are tried."""

    task: str
    policy: str
    """Baseline that decides the run itself: it sets which states are seen."""
    seed: int
    points: float = 5.0
    """Graphs at which actions are tried, on average."""
    tries: int = 4
    """Actions tried at each; 0: the graphs are kept, and nothing is measured."""
    wait: bool = True
    """Whether twins that wait are trained, where an action helps."""
    steps: int = 0

    @property
    def name(self) -> str:
        """Name of the run's file."""
        return file_name(self.task, self.policy, self.seed)

    def policy_of(self) -> Baseline:
        """Return what decides the run; raises ConfigurationError if there is no such baseline."""
        return baseline(self.policy)

    def make(self) -> Lookahead:
        """Make the run and its twins."""
        return make(self)


@dataclass(frozen=True, slots=True)
class Lookahead:
    """A run with the points at which actions were tried."""

    job: LookaheadJob
    result: RunResult
    points: list[Point]

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        about = {"job": asdict(self.job), "result": self.result.to_dict()}
        rows = [
            {
                "graph": encode(point.graph),
                "mask": point.mask.astype(np.uint8).tobytes(),
                "step": point.step,
                "without": point.without,
                "actions": list(point.actions),
                "advantages": list(point.advantages),
                "waiting": point.waiting,
            }
            for point in self.points
        ]
        write_table(pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata({"tamiyo": json.dumps(about)})), path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote."""
        table = pq.read_table(path)
        about: dict[str, Any] = json.loads(table.schema.metadata[b"tamiyo"])
        points = [
            Point(
                decode(row["graph"], ModelGraph),
                np.frombuffer(row["mask"], np.uint8).astype(np.bool_),
                row["step"],
                row["without"],
                tuple(row["actions"]),
                tuple(row["advantages"]),
                row["waiting"],
            )
            for row in table.to_pylist()
        ]
        return cls(LookaheadJob(**about["job"]), RunResult.from_dict(about["result"]), points)


_SCHEMA = pa.schema(
    [
        ("graph", pa.binary()),
        ("mask", pa.binary()),
        ("step", pa.int64()),
        ("without", pa.float64()),
        ("actions", pa.list_(pa.int64())),
        ("advantages", pa.list_(pa.float64())),
        ("waiting", pa.float64()),
    ]
)


def make(job: LookaheadJob) -> Lookahead:
    """Make a run, and try actions at some of its graphs."""
    rng = np.random.default_rng([job.seed, 7])
    points: list[Point] = []
    rule = {"rewards": {"estimator": "rule"}}  # rewards do not influence a run
    with Run(RunSpec(job.task, job.seed, job.steps), job.policy_of(), settings=rule) as run:
        trials = _Trials(run, rng, wait=job.wait)
        share = _share(job, run.spec.planned)
        seen = 0
        while (graph := run.advance()) is not None:
            mask = run.pipeline.mask(graph)
            choice = run.pipeline.choose(graph)
            if mask.sum() > 1:
                often = share * (2.0 if seen < EARLY else 1.0)
                seen += 1
                if rng.random() < often and (point := trials.at(graph, mask, choice, job.tries)):
                    points.append(point)
            if choice.index != 0:
                trials.forget()
            run.decide(choice)
        return Lookahead(job, run.result(), points)


def _share(job: LookaheadJob, steps: int) -> float:
    """Return the share of the later graphs to try at, so that `job.points` are on average."""
    graphs = steps / 50
    return min(0.5, job.points / (graphs + EARLY))


class _Trials:
    """Tries actions at the graphs of a run."""

    def __init__(self, run: Run, rng: np.random.Generator, *, wait: bool) -> None:
        self._run = run
        self._rng = rng
        self._wait = wait
        self._without: float | None = None

    def forget(self) -> None:
        """The run has adapted: no_op leads elsewhere from here on."""
        self._without = None

    def at(self, graph: ModelGraph, mask: npt.NDArray[np.bool_], choice: Choice, tries: int) -> Point | None:
        """Return what some actions bring at the waiting graph; None if there is nothing to measure yet."""
        if not tries:
            return Point(graph, mask, self._run.step, math.nan, (), (), None)
        if self._run.clock.training_seconds >= self._run.plain_compute:
            return self._late(graph, mask, choice, tries)
        if self._without is None:
            self._without = self._value(0)
        actions = list(self._actions(graph, mask, choice, tries))
        values = [self._value(action) for action in actions]
        if math.isnan(self._without) or any(map(math.isnan, values)):
            return None
        advantages = tuple(value - self._without for value in values)
        best = max(range(len(actions)), key=advantages.__getitem__)
        waiting = self._waiting(actions[best]) if advantages[best] > HELPS else 0.0
        return Point(graph, mask, self._run.step, self._without, tuple(actions), advantages, waiting)

    def _late(self, graph: ModelGraph, mask: npt.NDArray[np.bool_], choice: Choice, tries: int) -> Point:
        """Return a point at which nothing counts any more but what adaptations cost."""
        result = self._run.result()
        actions = tuple(self._actions(graph, mask, choice, tries))
        advantages = (-ADAPTATION_COST,) * len(actions)
        return Point(graph, mask, self._run.step, objective(result) - costs(result), actions, advantages)

    def _waiting(self, action: int) -> float | None:
        """Return what is gained by the action later on, the best of some delays; None if that is not measured."""
        if not self._wait:
            return None
        assert self._without is not None
        planned = self._run.spec.planned
        return max(0.0, *(self._value(action, int(share * planned)) - self._without for share in DELAYS))

    def _value(self, action: int, delay: int = 0) -> float:
        result = twin(self._run, action, policy=Never(), compute=self._run.plain_compute, delay=delay)
        return objective(result) - costs(result)

    def _actions(self, graph: ModelGraph, mask: npt.NDArray[np.bool_], choice: Choice, tries: int) -> Iterator[int]:
        """Yield different actions: what the run, the heuristic and the greediest would do, and others at random."""
        found: list[int] = [choice.index]
        if self._rng.random() < 0.5:
            found.append(Heuristic().likeliest(graph, mask))
        if self._rng.random() < 0.5:
            found.append(AtOnce().choose(graph, mask, seed=0).index)
        kinds = self._run.pipeline.policy.kinds
        legal = np.flatnonzero(mask)[1:]
        weights = np.array([TRIED[DecisionType(to_action(int(i), graph.layer_id, kinds).type)] for i in legal])
        drawn = self._rng.choice(legal, size=min(tries, len(legal)), replace=False, p=weights / weights.sum())
        distinct = dict.fromkeys(i for i in [*found, *drawn.tolist()] if i != 0)
        yield from list(distinct)[:tries]
