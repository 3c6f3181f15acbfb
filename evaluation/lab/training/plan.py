"""Which runs a policy is trained on, in rounds: each visits the states that the previous round's policy reaches."""

from __future__ import annotations

from itertools import cycle, islice

from tamiyo.evaluation.lab.hosts import HOSTS
from tamiyo.evaluation.lab.training.lookahead import LookaheadJob

EXPLORERS = ("random:0.1", "heuristic", "random:0.25", "at_once", "random:0.05")
"""Who decides the runs of the first round."""
SEED = 20_000
"""First seed of the first round; each round has its own thousand."""
FURTHER_SEED = 25_000
"""First seed of the runs that teach a policy more."""
ARCHITECTURES = 7
"""Of `varied_host`, which take turns."""
RESNETS = ARCHITECTURES * 4_000 - 1
"""First seed of varied hosts that are ResNets, which are slow."""


def first_round(passes: int) -> list[LookaheadJob]:
    """Return the runs of the first round: their twins go on without adaptations.

    Args:
        passes: Each is about eight runs on six kinds of task.
    """
    jobs: list[LookaheadJob] = []
    for number in range(passes):
        seed = SEED + number
        policies = [EXPLORERS[(number + shift) % len(EXPLORERS)] for shift in range(len(EXPLORERS))]
        jobs += [LookaheadJob(f"host-{3 * number + k}", policies[k], seed) for k in range(3)]
        jobs += [LookaheadJob(f"varied-{2 * number + k}", policies[k - 2], seed) for k in range(2)]
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
        passes: Each is about nine runs.
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
        varied = [f"varied-{1000 * number + 2 * index + k}" for k in range(2)]
        host = list(HOSTS)[index % len(HOSTS)]
        for task in (*varied, "mnist1d", hosts[0], "mnist5k", "digits", hosts[1], host, hosts[2]):
            add(task, seed)
        if index % 4 == 1:
            add("resnet", seed, points=4)
    return jobs


def further_round(passes: int, teacher: str) -> list[LookaheadJob]:
    """Return the runs that teach a policy more: of other networks, and of those that it knows.

    In most of the latter nothing is measured: the policy that is fitted shall think of their graphs as the teacher
    does.

    Args:
        passes: Each is ten runs that are measured, five of them of other networks, and ten that are not.
        teacher: The policy, such as "builtin" or "learned:FILE".
    """
    explorers = (teacher, "heuristic", teacher, "random:0.1")
    jobs: list[LookaheadJob] = []
    for index in range(passes):
        seed, first = FURTHER_SEED + index, FURTHER_SEED + 4 * index
        slow = "resnet" if index % 2 else f"varied-{RESNETS + ARCHITECTURES * index}"
        quick = (f"text-{first}", f"varied-{_quick(first)}", f"text-{first + 1}", f"varied-{_quick(first + 1)}")
        for number, task in enumerate((*quick, slow)):
            points = 3 if task == slow else 5
            jobs.append(LookaheadJob(task, explorers[(index + number) % len(explorers)], seed, points=points, tries=3))
        hosts = [f"host-{FURTHER_SEED + 3 * index + k}" for k in range(3)]
        drawn = [f"host-{FURTHER_SEED + 1000 + 2 * index + k}" for k in range(2)]
        for number, task in enumerate(("mnist1d", drawn[0], "digits", drawn[1], "mnist5k")):
            decides = explorers[(index + number) % len(explorers)]
            jobs.append(LookaheadJob(task, decides, seed + 1000, points=5, tries=3))
        varied = [f"varied-{_quick(first + k)}" for k in (2, 3)]
        known = ("digits", hosts[0], "mnist1d", hosts[1], "mnist5k", hosts[2], *varied)
        for number, task in enumerate((*known, *islice(cycle(HOSTS), index, index + 2))):
            jobs.append(LookaheadJob(task, explorers[(index + number) % len(explorers)], seed, points=12, tries=0))
    return jobs


def _quick(number: int) -> int:
    """Return the seed of the varied host with this number among those that are no ResNets."""
    whole, kind = divmod(number, ARCHITECTURES - 1)
    return ARCHITECTURES * whole + kind
