"""The evidence on the policy: raw rows of paired runs, of its decisions and of learners, and the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tamiyo.evaluation.evidence.reward import Rows
from tamiyo.evaluation.lab import compare
from tamiyo.evaluation.lab.baselines import GROMO, STATICS
from tamiyo.evaluation.lab.compare import NEVER
from tamiyo.evaluation.lab.judge import is_held_out
from tamiyo.evaluation.lab.traffic import Job, load
from tamiyo.evaluation.lab.truth import truths
from tamiyo.host._reference.tasks import HELD_OUT_TASKS, TASKS

PAIRS = "policy_pairs.parquet"
DECISIONS = "policy_decisions.parquet"
LEARNING = "policy_learning.parquet"

POLICY = "builtin"
"""The policy that comes with the package, as `tamiyo lab` names it."""
MAIN = (NEVER, POLICY, *STATICS, "heuristic")
ABLATIONS = ("builtin_without_edges",)
RULES = ("random:0.2", "periodic", "plateau", "greedy_growth", "greedy_counterfactual", "at_once")
SEED = 9_200
"""First seed of the runs that judge the policy; nothing was fitted to them."""
GROMO_TASK = "digits"
"""Task of which GroMo can grow the network."""
COMMAND = 'make evidence ARGS="--full-policy"'
SEEDS = {
    **dict.fromkeys((*TASKS, *HELD_OUT_TASKS), (20, 20)),
    "resnet": (12, 0),
    "chars": (4, 0),
}
"""By task: pairs with never adapting, the heuristic and static networks, and with each rule and ablation."""
TWINS = 6
"""Runs of each cheap task whose adaptations are judged by twins."""
UNNECESSARY = 0.005
"""Nats: an adaptation whose gain lies within this of 0 has changed nothing but the costs."""
CONVERGED = 0.9
"""Share of the improvement that a learner keeps from then on."""
COLLAPSED = 0.9
"""Probability of no_op above which a learner has collapsed: it adapts no more, though it would pay."""


def pair_jobs(most: int | None = None) -> list[Job]:
    """Return the runs to compare, those of one pair together.

    Args:
        most: Pairs of each task and policy; None: as many as SEEDS has.
    """
    jobs: list[Job] = []
    for index in range(max(main for main, _ in SEEDS.values()) if most is None else most):
        for task, (main, rules) in SEEDS.items():
            names = (*MAIN, *ABLATIONS, *RULES) if index < rules else MAIN if index < main else ()
            if task == GROMO_TASK and index < rules and _has_gromo():
                names = (*names, GROMO)
            jobs += [Job(task, name, SEED + index, alone=0.0) for name in names]
    return jobs


def missing_jobs(committed: Rows, most: int) -> list[Job]:
    """Return the runs of pairs that have no row yet, each task's run without adaptations included.

    Args:
        committed: Rows of pairs.
        most: Pairs that each task and policy shall have.
    """
    known = {(row["task"], row["policy"], row["seed"]) for row in committed}
    lacking = [job for job in pair_jobs(most) if job.policy != NEVER and _key(job) not in known]
    paired = {(job.task, job.seed) for job in lacking}
    wanted = {*lacking, *(job for job in pair_jobs(most) if job.policy == NEVER and (job.task, job.seed) in paired)}
    return [job for job in pair_jobs(most) if job in wanted]


def with_new_pairs(committed: Rows, folder: Path) -> list[dict[str, Any]]:
    """Return the rows of pairs, with those that the runs of a folder add; a row that is there stays."""
    known = {(row["task"], row["policy"], row["seed"]): dict(row) for row in committed}
    rows = {(row["task"], row["policy"], row["seed"]): row for row in measure_pairs(folder)} | known
    order = {_key(job): number for number, job in enumerate(pair_jobs())}
    return [rows[key] for key in sorted(rows, key=lambda key: order.get(key, len(order)))]


def not_repeatable(committed: Rows) -> list[Mapping[str, Any]]:
    """Return the rows that this installation cannot measure again: GroMo is no dependency."""
    return [row for row in committed if row["policy"] == GROMO and not _has_gromo()]


def _has_gromo() -> bool:
    return find_spec(GROMO) is not None


def _key(job: Job) -> tuple[str, str, int]:
    return job.task, job.policy, job.seed


def twin_jobs() -> list[Job]:
    """Return the policy's runs with a twin at every adaptation; other seeds than those of the pairs."""
    return [Job(task, POLICY, SEED + 500 + index) for index in range(TWINS) for task in (*TASKS, *HELD_OUT_TASKS)]


def measure_pairs(folder: Path) -> list[dict[str, Any]]:
    """Return the pairs of a folder's runs with never adapting."""
    return [asdict(pair) for pair in compare.pairs(load(folder, pair_jobs()))]


def measure_decisions(folder: Path) -> list[dict[str, Any]]:
    """Return the executed adaptations of the policy's runs, with their gains over their twins."""
    return [
        {
            "task": traffic.job.task,
            "seed": traffic.job.seed,
            "type": truth.adaptation.type,
            "blueprint": truth.adaptation.blueprint,
            "step": truth.adaptation.step,
            "gain": truth.gain,
            "cost": truth.cost,
        }
        for traffic in load(folder, twin_jobs())
        for truth in truths(traffic)
        if truth.gain is not None
    ]


def report(pairs: Rows, decisions: Rows, learning: Rows) -> dict[str, Any]:
    """Return the policy's part of the evidence, as plain values.

    Args:
        pairs: Runs against never adapting, as `measure_pairs` returns them.
        decisions: Adaptations with their gains, as `measure_decisions` returns them.
        learning: Stages of learners, as `learning_curve` returns them.
    """
    return {
        "policy": {name: by_task for name in _baselines(pairs) if (by_task := against(pairs, name))},
        "policy_runs": {"command": COMMAND, "seeds": _seeds(pairs)},
        "equal_steps": {name: against(pairs, name, "equal_steps") for name in (NEVER, *STATICS, GROMO, "heuristic")},
        "compute": {
            task: float(np.mean([row["slower"] for row in pairs if row["task"] == task and row["policy"] == POLICY]))
            for task in _tasks(pairs)
        },
        "decisions": judged_decisions(decisions),
        "learning": judged_learning(learning),
    }


def against(pairs: Rows, baseline: str, column: str = "equal_compute") -> dict[str, dict[str, Any]]:
    """Return the policy less a baseline by task: the difference of log held-out losses, below 0 where the policy wins.

    Below three pairs there is no interval: `low` and `high` are None.

    Args:
        pairs: Runs against never adapting.
        baseline: Name of the other policy.
        column: "equal_compute" or "equal_steps".
    """
    gained = {(row["task"], row["policy"], row["seed"]): row[column] for row in pairs}
    found: dict[str, dict[str, Any]] = {}
    for task in _tasks(pairs):
        differences = [
            other - value
            for (own, policy, seed), value in gained.items()
            if (own, policy) == (task, POLICY)
            and (other := 0.0 if baseline == NEVER else gained.get((task, baseline, seed))) is not None
        ]
        if differences:
            estimate = compare.estimate(differences)
            found[task] = {
                "n": len(differences),
                "difference": estimate.mean,
                "low": None if math.isnan(estimate.low) else estimate.low,
                "high": None if math.isnan(estimate.high) else estimate.high,
                "held_out": is_held_out(task),
            }
    return found


def judged_decisions(decisions: Rows) -> dict[str, Any]:
    """Return how many executed adaptations lowered the loss below their twin's, and how many changed nothing.

    A gain of exactly 0 is that of an adaptation that came too late to count at equal compute.
    """
    gains = np.array([row["gain"] for row in decisions], np.float64)
    known = {} if not len(gains) else {
        "beat_twin": float((gains > 0).mean()),
        "beat_twin_and_costs": float(np.mean([row["gain"] > row["cost"] for row in decisions])),
        "unnecessary": float((np.abs(gains) < UNNECESSARY).mean()),
        "late": float((gains == 0).mean()),
    }  # fmt: skip
    return {
        "executed": len(gains),
        **known,
        "by_task": {
            task: {
                "executed": len(own),
                "beat_twin": float(np.mean([row["gain"] > 0 for row in own])),
                "mean_gain": float(np.mean([row["gain"] for row in own])),
            }
            for task in sorted({row["task"] for row in decisions})
            if (own := [row for row in decisions if row["task"] == task])
        },
        "command": COMMAND,
        "seeds": sorted({row["seed"] for row in decisions}),
    }


def judged_learning(learning: Rows) -> dict[str, Any]:
    """Return how many learners there were, how many collapsed, and after how many experiences each had converged."""
    curves: dict[int, list[Mapping[str, Any]]] = {}
    for row in sorted(learning, key=lambda row: (row["seed"], row["experiences"])):
        curves.setdefault(row["seed"], []).append(row)
    converged = [_converged(curve) for curve in curves.values()]
    return {
        "seeds": len(curves),
        "collapsed": sum(curve[-1]["no_op"] > COLLAPSED for curve in curves.values()),
        "improved": sum(curve[-1]["reward"] > curve[0]["reward"] for curve in curves.values()),
        "improved_after_100": sum(_after(curve, 100) > curve[0]["reward"] for curve in curves.values()),
        "experiences_to_converge": max(converged) if converged else None,
        "median_experiences_to_converge": float(np.median(converged)) if converged else None,
        "command": COMMAND,
    }


def _converged(curve: Sequence[Mapping[str, Any]]) -> int:
    """Return the experiences from which on a learner keeps 90 % of its improvement."""
    start, end = curve[0]["reward"], max(row["reward"] for row in curve)
    enough = start + CONVERGED * (end - start)
    below = [row["experiences"] for row in curve if row["reward"] < enough]
    return int(min((row["experiences"] for row in curve if row["experiences"] > max(below, default=-1)), default=-1))


def _after(curve: Sequence[Mapping[str, Any]], experiences: int) -> float:
    return next((float(row["reward"]) for row in curve if row["experiences"] >= experiences), float("nan"))


def _tasks(pairs: Rows) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in pairs))


def _baselines(pairs: Rows) -> list[str]:
    return [NEVER, *(name for name in dict.fromkeys(row["policy"] for row in pairs) if name != POLICY)]


def _seeds(pairs: Rows) -> list[int]:
    return sorted({row["seed"] for row in pairs})


def lines(found: Mapping[str, Any]) -> Iterable[str]:
    """Yield the policy's part of the page, in Markdown."""
    yield "Difference of log held-out loss, early-stopped, at equal compute: the policy less the other; below 0 the"
    yield "policy is better. Means over paired seeds with 95 % bootstrap intervals (BCa); bold where the interval"
    yield "excludes 0; then the number of pairs.\n"
    yield "`static` has from the first step the kernels with which the policy's run ends, `static_wider` none, but"
    yield "hidden widths scaled to as many parameters: nobody adapts either. `builtin_without_edges` is the policy with"
    yield "the edges hidden from its network, not fitted anew. `gromo` is another library that grows networks. [The"
    yield "laboratory](laboratory.md#tasks-and-policies) has them all.\n"
    policies = found["policy"]
    tasks = list(dict.fromkeys(task for each in policies.values() for task in each))
    held_out = {task for each in policies.values() for task, own in each.items() if own["held_out"]}
    yield f"| against | {' | '.join(f'{task} (held out)' if task in held_out else task for task in tasks)} |"
    yield f"| --- {'| --- ' * len(tasks)}|"
    for name, each in policies.items():
        yield f"| {name} | {' | '.join(_cell(each.get(task)) for task in tasks)} |"
    yield "\nAt equal steps, as if a slower step cost nothing:\n"
    yield f"| against | {' | '.join(tasks)} |"
    yield f"| --- {'| --- ' * len(tasks)}|"
    for name, each in found["equal_steps"].items():
        if not each:
            continue
        yield f"| {name} | {' | '.join(_cell(each.get(task)) for task in tasks)} |"
    slower = ", ".join(f"{task} {found['compute'][task]:.2f}" for task in tasks)
    yield f"\nComputed time of a whole run, relative to never adapting: {slower}.\n"
    decided = found["decisions"]
    if decided["executed"]:
        yield f"Of {decided['executed']} executed adaptations, {decided['beat_twin']:.0%} lowered the final loss below"
        yield f"that of their twin without it, {decided['beat_twin_and_costs']:.0%} by more than their costs, and"
        yield f"{decided['unnecessary']:.0%} changed it by less than {UNNECESSARY} nats; {decided['late']:.0%} came"
        yield "when the compute of the run without adaptations was spent, of which its training had shown it nothing.\n"
        yield "| task | executed | beat their twin | mean gain |"
        yield "| --- | --- | --- | --- |"
        for task, own in decided["by_task"].items():
            yield f"| {task} | {own['executed']} | {own['beat_twin']:.0%} | {own['mean_gain']:+.3f} |"
        yield ""
    learned = found["learning"]
    if learned["seeds"]:
        yield f"Learning by PPO, from the heuristic, on the bandit of graphs: of {learned['seeds']} learners,"
        yield f"{learned['improved_after_100']} had improved after 100 experiences and {learned['improved']} after"
        yield f"1,000, {learned['collapsed']} collapsed; 90 % of the improvement was there for good after"
        yield f"{learned['median_experiences_to_converge']:.0f} experiences in the median, "
        yield f"{learned['experiences_to_converge']} at most.\n"
    yield 'Repeat it: `make evidence ARGS="--full-policy"` makes all these runs, `make evidence ARGS="--pairs 20"`'
    yield "those that are missing of 20 pairs."


def _cell(each: Mapping[str, Any] | None) -> str:
    if each is None:
        return ""
    if each["low"] is None:
        return f"{each['difference']:+.3f}, {each['n']}"
    shown = f"{each['difference']:+.3f} [{each['low']:+.3f}, {each['high']:+.3f}], {each['n']}"
    return f"**{shown}**" if each["low"] > 0 or each["high"] < 0 else shown
