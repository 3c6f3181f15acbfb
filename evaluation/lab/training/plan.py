"""Which runs a policy is trained on, in rounds: each visits the states that the previous round's policy reaches."""

from __future__ import annotations

from collections.abc import Callable

from tamiyo.evaluation.lab.hosts import HOSTS
from tamiyo.evaluation.lab.training.lookahead import LookaheadJob

EXPLORERS = ("random:0.1", "heuristic", "random:0.25", "at_once", "random:0.05")
"""Who decides the runs of the first round."""
SEED = 20_000
"""First seed of the first round; each round has its own thousand."""

Tasks = Callable[[int], list[tuple[str, dict[str, int]]]]


def first_round(passes: int) -> list[LookaheadJob]:
    """Return the runs of the first round: their twins go on without adaptations.

    Args:
        passes: Each is about six runs on five kinds of task.
    """
    jobs: list[LookaheadJob] = []
    for number in range(passes):
        seed = SEED + number
        policies = [EXPLORERS[(number + shift) % len(EXPLORERS)] for shift in range(len(EXPLORERS))]
        jobs += [LookaheadJob(f"host-{3 * number + k}", policies[k], seed) for k in range(3)]
        jobs.append(LookaheadJob("digits", policies[0], seed))
        slower = EXPLORERS[number // 2 % len(EXPLORERS)]
        jobs.append(LookaheadJob(("mnist1d", "mnist5k")[number % 2], slower, seed, points=4))
        jobs.append(LookaheadJob(list(HOSTS)[number % len(HOSTS)], policies[2], seed))
        if number % 4 == 0:
            slow = EXPLORERS[number // 4 % len(EXPLORERS)]
            jobs.append(LookaheadJob("resnet", slow, seed, points=4, tries=3))
        if number % 6 == 2:
            slow = EXPLORERS[number // 6 % len(EXPLORERS)]
            jobs.append(LookaheadJob("chars", slow, seed, points=3, tries=2))
    return jobs


def later_round(number: int, passes: int, policy: str) -> list[LookaheadJob]:
    """Return the runs of a later round, most of which the previous round's policy decides.

    Args:
        number: Of the round, from 1.
        passes: Each is about seven runs.
        policy: The previous round's policy, such as "learned:FILE".
    """
    explorers = (policy, policy, "heuristic", policy, "random:0.1")
    jobs: list[LookaheadJob] = []

    def add(task: str, seed: int, points: int = 6) -> None:
        decides = explorers[len(jobs) % len(explorers)]
        jobs.append(LookaheadJob(task, decides, seed, points=points, tries=3))

    for index in range(passes):
        seed = SEED + 1000 * number + index
        hosts = [f"host-{100 * number + 3 * index + k}" for k in range(3)]
        for task in ("mnist1d", hosts[0], "mnist5k", "digits", hosts[1], list(HOSTS)[index % len(HOSTS)], hosts[2]):
            add(task, seed)
        if index % 4 == 1:
            add("resnet", seed, points=4)
    return jobs
