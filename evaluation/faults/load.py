"""Faults of what arrives: a large network among small ones, bursts, wrong clocks, and hosts of the last release."""

import random
import time

from tamiyo.evaluation.common.installation import PARTITIONS
from tamiyo.evaluation.common.released_records import encode_released
from tamiyo.evaluation.faults.scene import Scene
from tamiyo.evaluation.faults.telemetry import Guest

# Kafka refuses a record that is stamped more than an hour ahead of its broker.
JUMPS_S = (3_540, -3_600, -86_400)


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


def clock_jump(scene: Scene, rng: random.Random) -> str:
    """Let the clock of a host jump ahead and back, twice: its event times and its messages' timestamps follow."""
    partition, jumps = rng.randrange(PARTITIONS), [round(rng.choice(JUMPS_S) * rng.uniform(0.5, 1)) for _ in range(2)]
    for seconds in jumps:
        scene.telemetry.clocks[partition] = 1000 * seconds
        time.sleep(rng.uniform(2, 5))
    scene.telemetry.clocks.pop(partition, None)
    return f"partition {partition}, by {' s, then by '.join(map(str, jumps))} s"


def old_host(scene: Scene, rng: random.Random) -> str:
    """Train a network whose host is of the last release: its records have that release's schemas."""
    frames = rng.randint(20, 40)
    scene.telemetry.invite([Guest(rng.randrange(PARTITIONS), frames=frames, encoding=encode_released)])
    return f"{frames} sampled steps"
