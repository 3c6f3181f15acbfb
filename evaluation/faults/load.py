"""Faults of what arrives: a large network among small ones, and bursts."""

import random

from tamiyo.evaluation.common.installation import PARTITIONS
from tamiyo.evaluation.faults.scene import Scene
from tamiyo.evaluation.faults.telemetry import Guest


def large_network(scene: Scene, rng: random.Random) -> str:
    """Train a network whose windows are too large to publish beside the small ones."""
    layers = rng.randint(2_500, 3_000)
    scene.telemetry.invite([Guest(rng.randrange(PARTITIONS), frames=rng.randint(12, 25), layers=layers, decided=False)])
    return f"{layers} layers"


def burst_of_a_run(scene: Scene, rng: random.Random) -> str:
    """Publish hundreds of records of one run at once, as a host does whose broker has returned."""
    frames = rng.randint(100, 200)
    scene.telemetry.invite([Guest(rng.randrange(PARTITIONS), frames=frames, at_once=True)])
    return f"{frames} sampled steps"


def burst_of_runs(scene: Scene, rng: random.Random) -> str:
    """Publish many runs at once, each from its first record to its last."""
    runs = rng.randint(10, 20)
    scene.telemetry.invite(
        [Guest(rng.randrange(PARTITIONS), frames=rng.randint(20, 40), at_once=True) for _ in range(runs)]
    )
    return f"{runs} runs"
