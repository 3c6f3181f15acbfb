"""The faults: what each does to an installation, and how long.

A fault is a function of the scene and a source of randomness. It returns when what it broke is whole again as far as
the outside goes: a killed process is being started again, a broker answers.
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

PAST_SESSION_S = (7.0, 11.0)  # the session is 6 s: whoever sleeps longer is a zombie
STAND_IN = "stand-in"
START_ATTEMPTS = 5
FREEZE_S, THAW_S = 0.3, 0.06  # a slow broker runs a sixth of the time


@dataclass(slots=True)
class Scene:
    """What faults happen to."""

    installation: Installation
    workers: Sequence[str]
    kernels: Disk
    checkpoints: Disk
    broker: threading.Lock = field(default_factory=threading.Lock)
    """Held by whoever does something to the broker: it cannot be stopped while it starts."""
    learners: threading.Lock = field(default_factory=threading.Lock)
    """Held while there are two learners: a third would be one more of the same."""


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
    """SIGSTOP a worker past its session, then SIGCONT: it comes back as a zombie."""
    name, seconds = rng.choice(scene.workers), rng.uniform(*PAST_SESSION_S)
    scene.installation.fleet.pause(name)
    time.sleep(seconds)
    scene.installation.fleet.resume(name)
    return f"{name} for {seconds:.1f} s"


def freeze_learner(scene: Scene, rng: random.Random) -> str:
    """SIGSTOP the learner until another has taken its place, then SIGCONT: for seconds there are two."""
    fleet, seconds = scene.installation.fleet, rng.uniform(3, 9)
    with scene.learners:
        fleet.pause(LEARNER)
        fleet.add_learner(STAND_IN)
        with suppress(BrokerError):  # where the broker is away too, it takes longer
            fleet.wait_ready([STAND_IN])
        fleet.resume(LEARNER)
        time.sleep(seconds)
        fleet.stop(STAND_IN)
    return f"{LEARNER}, with another in its place, and both for {seconds:.1f} s"


def restart_worker(scene: Scene, rng: random.Random) -> str:
    """SIGTERM a worker and start it again, as a rolling update does."""
    name = rng.choice(scene.workers)
    scene.installation.fleet.restart(name)
    return name


def kill_broker(scene: Scene, rng: random.Random) -> str:
    """SIGKILL the broker and start it again on its data."""
    return _away(scene, scene.installation.broker.kill, rng.uniform(0, 3))


def stop_broker(scene: Scene, rng: random.Random) -> str:
    """Stop the broker as an operator does, and start it again after seconds."""
    return _away(scene, scene.installation.broker.stop, rng.uniform(2, 8))


def _away(scene: Scene, end: Callable[[], None], down_s: float) -> str:
    with scene.broker:
        end()
        time.sleep(down_s)
        for attempt in range(START_ATTEMPTS):
            try:
                scene.installation.broker.start()
                break
            except BrokerError:  # on a busy machine it may not answer within its minute
                if attempt == START_ATTEMPTS - 1:
                    raise
    return f"down for {down_s:.1f} s and its start"


def slow_broker(scene: Scene, rng: random.Random) -> str:
    """Let the broker run a sixth of the time: every request waits."""
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
    """Members join the stages' groups and leave again, so that partitions change hands over and over."""
    stages = rng.sample(list(STAGES), k=rng.randint(2, len(STAGES)))
    rounds = rng.randint(2, 4)
    for _ in range(rounds):
        members = [_join(scene, stage) for stage in stages]
        until = time.monotonic() + rng.uniform(0.5, 2.0)
        while time.monotonic() < until:
            for member in members:
                member.poll(0.05)  # what it reads is not its to commit
        for member in members:
            member.close()
    return f"{rounds} times, in the groups of {', '.join(stages)}"


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
    """Leave no room in the kernel store."""
    return _full(scene, rng, scene.kernels, scene.workers)


def full_state(scene: Scene, rng: random.Random) -> str:
    """Leave no room where the learner keeps its state, which is its checkpoints: stages keep none on disk."""
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
"""Each fault with how often it is drawn."""


def several(scene: Scene, rng: random.Random) -> str:
    """Two or three different faults at once."""
    chosen = rng.sample(sorted(KINDS), k=rng.randint(2, 3))
    # Each its own randomness, drawn here: threads would share one in an order of their own.
    sources = [random.Random(rng.random()) for _ in chosen]
    with ThreadPoolExecutor(len(chosen)) as pool:
        running = [pool.submit(KINDS[name][0], scene, source) for name, source in zip(chosen, sources, strict=True)]
        return "; ".join(f"{name}: {each.result()}" for name, each in zip(chosen, running, strict=True))


ALL: dict[str, tuple[Fault, int]] = {**KINDS, "several": (several, 2)}


def plan(count: int, rng: random.Random) -> list[str]:
    """Return `count` kinds in random order: each as often as its weight says, and every kind before any rest."""
    bag: list[str] = []
    while len(bag) < count:
        hand = sorted(ALL) if not bag else [name for name, (_, weight) in sorted(ALL.items()) for _ in range(weight)]
        rng.shuffle(hand)
        bag += hand
    chosen = bag[:count]
    rng.shuffle(chosen)
    return chosen
