"""The faults.

A fault is a function of the scene and a source of randomness. It returns when its cause is over: a killed process is
being restarted, the broker runs.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaException

from tamiyo.evaluation.common.fleet import LEARNER
from tamiyo.evaluation.common.installation import Installation
from tamiyo.evaluation.faults.disk import Disk
from tamiyo.schemas.errors import BrokerError
from tamiyo.streams.stages.registry import STAGES

PAST_SESSION_S = (7.0, 11.0)  # the session timeout is 6 s: a process frozen for longer returns as a zombie
STAND_IN = "stand-in"
START_ATTEMPTS = 5
FREEZE_S, THAW_S = 0.3, 0.06  # a slow broker runs a sixth of the time


@dataclass(slots=True)
class Scene:
    """What faults are injected into."""

    installation: Installation
    workers: Sequence[str]
    kernels: Disk
    checkpoints: Disk
    broker: threading.Lock = field(default_factory=threading.Lock)
    """Held while a fault changes the broker: it cannot be stopped while it starts."""
    learners: threading.Lock = field(default_factory=threading.Lock)
    """Held while there are two learners, so that there is never a third."""


def kill_worker(scene: Scene, rng: random.Random) -> str:
    """SIGKILL one worker, with all its stages."""
    name = rng.choice(scene.workers)
    scene.installation.fleet.kill(name, restart_after_s=rng.uniform(0, 2))
    return name


def kill_learner(scene: Scene, rng: random.Random) -> str:
    """SIGKILL the learner."""
    scene.installation.fleet.kill(LEARNER, restart_after_s=rng.uniform(0, 2))
    return LEARNER


def freeze_worker(scene: Scene, rng: random.Random) -> str:
    """SIGSTOP a worker past its session timeout, then SIGCONT: it returns as a zombie."""
    name, seconds = rng.choice(scene.workers), rng.uniform(*PAST_SESSION_S)
    scene.installation.fleet.pause(name)
    time.sleep(seconds)
    scene.installation.fleet.resume(name)
    return f"{name} for {seconds:.1f} s"


def freeze_learner(scene: Scene, rng: random.Random) -> str:
    """SIGSTOP the learner until a second one runs, then SIGCONT: for seconds there are two."""
    fleet, seconds = scene.installation.fleet, rng.uniform(3, 9)
    with scene.learners:
        fleet.pause(LEARNER)
        fleet.add_learner(STAND_IN)
        with suppress(BrokerError):  # not ready in time if the broker is down too
            fleet.wait_ready([STAND_IN])
        fleet.resume(LEARNER)
        time.sleep(seconds)
        fleet.stop(STAND_IN)
    return f"{LEARNER} until a second one ran, both for {seconds:.1f} s"


def restart_worker(scene: Scene, rng: random.Random) -> str:
    """SIGTERM a worker and restart it, as a rolling update does."""
    name = rng.choice(scene.workers)
    scene.installation.fleet.restart(name)
    return name


def kill_broker(scene: Scene, rng: random.Random) -> str:
    """SIGKILL the broker and restart it on its data."""
    return _take_down(scene, scene.installation.broker.kill, rng.uniform(0, 3))


def stop_broker(scene: Scene, rng: random.Random) -> str:
    """Stop the broker as an operator does, and restart it after seconds."""
    return _take_down(scene, scene.installation.broker.stop, rng.uniform(2, 8))


def _take_down(scene: Scene, end: Callable[[], None], down_s: float) -> str:
    with scene.broker:
        end()
        time.sleep(down_s)
        for attempt in range(START_ATTEMPTS):
            try:
                scene.installation.broker.start()
                break
            except BrokerError:  # a busy machine may take more than the minute allowed
                if attempt == START_ATTEMPTS - 1:
                    raise
    return f"down for {down_s:.1f} s and the time to start"


def slow_broker(scene: Scene, rng: random.Random) -> str:
    """Freeze the broker five sixths of the time: every request waits."""
    seconds = rng.uniform(3, 7)
    with scene.broker:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            scene.installation.broker.pause()
            time.sleep(FREEZE_S)
            scene.installation.broker.resume()
            time.sleep(THAW_S)
    return f"for {seconds:.1f} s"


def storm(scene: Scene, rng: random.Random) -> str:
    """Join the stages' groups and leave them, so that partitions move repeatedly."""
    stages = rng.sample(list(STAGES), k=rng.randint(2, len(STAGES)))
    rounds = rng.randint(2, 4)
    for _ in range(rounds):
        members = [_join(scene, stage) for stage in stages]
        until = time.monotonic() + rng.uniform(0.5, 2.0)
        while time.monotonic() < until:
            for member in members:
                member.poll(0.05)  # it commits nothing
        for member in members:
            member.close()
    return f"{rounds} rounds in the groups of {', '.join(stages)}"


def _join(scene: Scene, stage: str) -> Consumer:
    names = scene.installation.names
    member = Consumer(
        scene.installation.kafka.librdkafka(
            **{
                "group.id": names.full(STAGES[stage].group),
                "enable.auto.commit": False,
                "partition.assignment.strategy": "range",
                "session.timeout.ms": 6_000,
                "log_level": 0,
            }
        )
    )
    with suppress(KafkaException):
        member.subscribe([names.full(topic.name) for topic in STAGES[stage].load().inputs])
    return member


def full_kernel_store(scene: Scene, rng: random.Random) -> str:
    """Fill the kernel store's disk."""
    return _full(scene, rng, scene.kernels, scene.workers)


def full_state(scene: Scene, rng: random.Random) -> str:
    """Fill the disk of the learner's checkpoints, the only state on disk: stages keep none."""
    return _full(scene, rng, scene.checkpoints, [LEARNER])


def _full(scene: Scene, rng: random.Random, disk: Disk, writers: Sequence[str]) -> str:
    seconds = rng.uniform(4, 9)
    pids = [scene.installation.fleet.pid(name) for name in writers]
    with disk.full([pid for pid in pids if pid is not None]):
        time.sleep(seconds)
    return f"for {seconds:.1f} s, by {disk.means}"


Fault = Callable[[Scene, random.Random], str]

KINDS: dict[str, tuple[Fault, int]] = {
    "kill_worker": (kill_worker, 5),
    "freeze_worker": (freeze_worker, 4),
    "kill_broker": (kill_broker, 3),
    "kill_learner": (kill_learner, 2),
    "stop_broker": (stop_broker, 2),
    "storm": (storm, 2),
    "slow_broker": (slow_broker, 2),
    "restart_worker": (restart_worker, 1),
    "full_kernel_store": (full_kernel_store, 1),
    "full_state": (full_state, 1),
    "freeze_learner": (freeze_learner, 1),
}
"""Each fault with its weight in a plan."""


def several(scene: Scene, rng: random.Random) -> str:
    """Two or three different faults at once."""
    chosen = rng.sample(sorted(KINDS), k=rng.randint(2, 3))
    # One source each: threads would draw from a shared one in a random order.
    sources = [random.Random(rng.random()) for _ in chosen]
    with ThreadPoolExecutor(len(chosen)) as pool:
        running = [pool.submit(KINDS[name][0], scene, source) for name, source in zip(chosen, sources, strict=True)]
        return "; ".join(f"{name}: {each.result()}" for name, each in zip(chosen, running, strict=True))


ALL: dict[str, tuple[Fault, int]] = {**KINDS, "several": (several, 2)}


def plan(count: int, rng: random.Random) -> list[str]:
    """Return `count` kinds in random order: every kind at least once if there are enough, then by weight."""
    bag: list[str] = []
    while len(bag) < count:
        round_of = (
            sorted(ALL) if not bag else [name for name, (_, weight) in sorted(ALL.items()) for _ in range(weight)]
        )
        rng.shuffle(round_of)
        bag += round_of
    chosen = bag[:count]
    rng.shuffle(chosen)
    return chosen
