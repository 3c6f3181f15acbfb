"""Which runs the laboratory makes for which purpose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tamiyo.evaluation.lab.hosts import HOSTS
from tamiyo.evaluation.lab.traffic import Job
from tamiyo.host._reference.tasks import LAB_TASKS, TASKS

FIT_SEED = 1000
"""First seed of the runs to which the estimator is fitted."""
JUDGE_SEED = 5000
"""First seed of the runs by which it is judged."""

LARGE_TASKS = tuple(task for task in LAB_TASKS if task not in TASKS)
CHEAP_TASKS = ("digits", *(host for host in HOSTS if host.startswith("digits")))
PERCEPTRONS = (*HOSTS, "digits")
CONVOLUTIONS = ("mnist1d", "mnist5k")
SEEDS = ((PERCEPTRONS, 21), (CONVOLUTIONS, 8), (LARGE_TASKS, 1))
"""Tasks to fit to, and the seeds of each: as many as their cost allows."""
DRAWN_TASKS = tuple(f"{kind}-{number}" for number in range(1000, 1056) for kind in ("host", "varied"))
"""Networks drawn at random, one seed each: an estimator that has seen few architectures misjudges the others."""

ADVERSARIAL = ("pump", "at_once", "cheapest")


def exploration(runs: Iterable[tuple[str, int]]) -> list[Job]:
    """Return runs to fit to: half random traffic, half of the policies that decide and of those that try to cheat.

    Args:
        runs: Tasks and seeds.
    """
    jobs: list[Job] = []
    for index, (task, seed) in enumerate(runs):
        rate = (0.08, 0.2, 0.4)[index % 3]
        other = ("heuristic", "builtin", "at_once", "heuristic", "builtin", "cheapest", "pump")[index % 7]
        jobs += [Job(task, policy, seed) for policy in (f"random:{rate}", other)]
    return jobs


def judging(
    tasks: Iterable[str],
    seeds: int,
    *,
    first: int = JUDGE_SEED,
    under_policy: float = 0.5,
    reordered: float = 0.0,
    redrawn: float = 0.0,
) -> list[Job]:
    """Return runs to judge by: random and heuristic traffic with its twins, the others without, and never.

    Args:
        tasks: What they train.
        seeds: How many of each.
        first: The first seed.
        under_policy: Share of the decisions of random and heuristic traffic whose worth is measured.
        reordered: Share of them whose worth is measured again on another order of the data.
        redrawn: Share of them whose worth is measured again with another random stream of the policy as well.
    """
    jobs: list[Job] = []
    names = list(tasks)
    for seed in range(first, first + seeds):
        for task in names:
            jobs += [
                Job(task, policy, seed, under_policy=under_policy, repeated=0.2, reordered=reordered, redrawn=redrawn)
                for policy in ("random:0.2", "heuristic")
            ]
            jobs += [Job(task, policy, seed, alone=0.0) for policy in ("never", *ADVERSARIAL)]
    return jobs


def fitting_jobs() -> list[Job]:
    """Return the runs to which the shipped estimator is fitted."""
    known = [(task, FIT_SEED + index) for tasks, seeds in SEEDS for index in range(seeds) for task in tasks]
    drawn = [(task, FIT_SEED) for task in DRAWN_TASKS]
    return [*exploration(known), *exploration(drawn)]


def judging_jobs() -> list[Job]:
    """Return the runs by which it is judged: other seeds, and tasks that nothing is fitted to.

    Worth is measured again where a run is cheap, and on a few decisions elsewhere.
    """
    return [
        *judging(("digits",), 11, reordered=0.5, redrawn=0.25),
        *judging(("mnist1d",), 6, reordered=0.3),
        *judging(("mnist5k",), 6),
        *judging(("charconv",), 4, reordered=0.5),
        *judging(("mixer",), 4, under_policy=0.65, reordered=0.65),
        *judging(HOSTS, 3, reordered=0.5, redrawn=0.25),
        *judging(LARGE_TASKS, 1),
    ]


def worth_jobs() -> list[Job]:
    """Return those of them in which worth is measured again, without their other branches."""
    return [replace(job, alone=0.0, repeated=0.0) for job in judging_jobs() if job.reordered]


def sample_jobs(decisions: Iterable[Mapping[str, Any]], count: int) -> list[Job]:
    """Return `count` of the judged runs that are cheap to make again, spread over tasks; worth is measured once."""
    cheap = [
        replace(job, reordered=0.0, redrawn=0.0)
        for job in judging_jobs()
        if job.task in CHEAP_TASKS and job.policy in ("random:0.2", "heuristic")
    ]
    judged = {(row["task"], row["policy"], row["seed"]) for row in decisions}
    found = [job for job in cheap if (job.task, job.policy, job.seed) in judged]
    return found[:: max(1, len(found) // max(count, 1))][:count]
