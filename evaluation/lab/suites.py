"""Which runs the laboratory makes for which purpose."""

from __future__ import annotations

from collections.abc import Iterable

from tamiyo.evaluation.lab.traffic import Job

FIT_SEED = 1000
"""First seed of the runs to which the estimator is fitted."""
JUDGE_SEED = 5000
"""First seed of the runs by which it is judged."""

ADVERSARIAL = ("pump", "at_once", "cheapest")


def exploration(tasks: Iterable[str], seeds: int, *, first: int = FIT_SEED, steps: int = 0) -> list[Job]:
    """Return runs to fit to: mostly random traffic, some of the heuristic and of those that try to cheat."""
    jobs: list[Job] = []
    names = list(tasks)
    for index in range(seeds):
        for task in names:
            seed = first + index
            jobs.append(
                Job(task, f"random:{(0.08, 0.2, 0.4)[index % 3]}", seed, under_policy=0.2, repeated=0.05, steps=steps)
            )
            other = ("heuristic", "at_once", "cheapest", "pump")[index % 4]
            jobs.append(Job(task, other, seed, alone=0.4 if other == "pump" else 0.7, steps=steps))
    return jobs


def judgement(tasks: Iterable[str], seeds: int, *, first: int = JUDGE_SEED) -> list[Job]:
    """Return runs to judge by: random and heuristic traffic with its twins, the others without, and never."""
    jobs: list[Job] = []
    names = list(tasks)
    for seed in range(first, first + seeds):
        for task in names:
            jobs += [Job(task, policy, seed, under_policy=0.5, repeated=0.2) for policy in ("random:0.2", "heuristic")]
            jobs += [Job(task, policy, seed, alone=0.0) for policy in ("never", *ADVERSARIAL)]
    return jobs
