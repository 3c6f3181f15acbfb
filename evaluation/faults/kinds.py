"""The kinds of faults, and a plan of faults drawn from a seed."""

import random
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from tamiyo.evaluation.faults import load, processes, services
from tamiyo.evaluation.faults.scene import Fault, Scene

KINDS: dict[str, tuple[Fault, int]] = {
    "kill_worker": (processes.kill_worker, 5),
    "freeze_worker": (processes.freeze_worker, 4),
    "kill_broker": (services.kill_broker, 3),
    "kill_learner": (processes.kill_learner, 2),
    "stop_broker": (services.stop_broker, 2),
    "storm": (processes.storm, 2),
    "slow_broker": (services.slow_broker, 2),
    "restart_worker": (processes.restart_worker, 1),
    "full_kernel_store": (processes.full_kernel_store, 1),
    "full_state": (processes.full_state, 1),
    "freeze_learner": (processes.freeze_learner, 1),
    "two_learners": (processes.two_learners, 1),
    "clock_of_a_worker": (processes.clock_of_a_worker, 1),
    "large_network": (load.large_network, 1),
    "burst_of_a_run": (load.burst_of_a_run, 1),
    "burst_of_runs": (load.burst_of_runs, 1),
    "clock_jump": (load.clock_jump, 1),
    "old_host": (load.old_host, 1),
    "full_broker_disk": (services.full_broker_disk, 1),
    "registry_away": (services.registry_away, 1),
}
"""Each fault with its weight in a plan."""


def several(scene: Scene, rng: random.Random) -> str:
    """Two or three different faults at once."""
    chosen = rng.sample(sorted(KINDS.keys() & scene.kinds), k=rng.randint(2, 3))
    # One source each: threads would draw from a shared one in a random order.
    sources = [random.Random(rng.random()) for _ in chosen]
    with ThreadPoolExecutor(len(chosen)) as pool:
        running = [pool.submit(KINDS[name][0], scene, source) for name, source in zip(chosen, sources, strict=True)]
        return "; ".join(f"{name}: {each.result()}" for name, each in zip(chosen, running, strict=True))


ALL: dict[str, tuple[Fault, int]] = {**KINDS, "several": (several, 2)}


def plan(count: int, rng: random.Random, kinds: Collection[str] = tuple(ALL)) -> list[str]:
    """Return `count` of `kinds` in random order: every kind at least once if there are enough, then by weight."""
    bag: list[str] = []
    while len(bag) < count:
        round_of = sorted(kinds) if not bag else [name for name in sorted(kinds) for _ in range(ALL[name][1])]
        rng.shuffle(round_of)
        bag += round_of
    chosen = bag[:count]
    rng.shuffle(chosen)
    return chosen
