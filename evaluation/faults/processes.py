"""Faults of processes: workers and learners that are killed, frozen, restarted or one too many, and their full disks.

No client of ours is a transactional producer, which another one's start would fence. What fencing is for is a zombie: a
worker that is frozen past its session, whose partitions others hold when it continues.
"""

import random
import time
from collections.abc import Sequence
from contextlib import suppress

from confluent_kafka import Consumer, KafkaException

from tamiyo.evaluation.common.fleet import LEARNER
from tamiyo.evaluation.faults.disk import Disk
from tamiyo.evaluation.faults.scene import Scene
from tamiyo.evaluation.faults.wall_clock import set_ahead
from tamiyo.schemas.errors import BrokerError
from tamiyo.streams.stages.registry import STAGES

PAST_SESSION_S = (7.0, 11.0)  # the session timeout is 6 s: a process frozen for longer returns as a zombie
STAND_IN = "stand-in"
JUMPS_S = (3_540, -3_600)  # Kafka refuses a record that is stamped more than an hour ahead of its broker


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


def clock_of_a_worker(scene: Scene, rng: random.Random) -> str:
    """Set the wall clock of a worker an hour ahead or back, and right again; in between it may be killed.

    What was killed starts with the wrong clock, and is right only when it is restarted or its clock has caught up.
    """
    name, seconds = rng.choice(scene.workers), round(rng.choice(JUMPS_S) * rng.uniform(0.5, 1))
    folder, killed = scene.installation.fleet.folder_of(name), rng.random() < 0.5
    set_ahead(folder, seconds)
    time.sleep(rng.uniform(2, 5))
    if killed:
        scene.installation.fleet.kill(name, restart_after_s=0)
        time.sleep(rng.uniform(5, 15))
    set_ahead(folder, 0)
    return f"{name} by {seconds} s{', and killed meanwhile' if killed else ''}"


def two_learners(scene: Scene, rng: random.Random) -> str:
    """Run two learners at the same time until one of them, the first or the second, is stopped."""
    fleet, seconds, first_stays = scene.installation.fleet, rng.uniform(6, 15), rng.random() < 0.5
    with scene.learners:
        fleet.add_learner(STAND_IN)
        with suppress(BrokerError):  # not ready in time if the broker is down too
            fleet.wait_ready([STAND_IN])
        time.sleep(seconds)
        if not first_stays:
            fleet.restart(LEARNER)
        fleet.stop(STAND_IN)
    return f"for {seconds:.1f} s; the {'second' if first_stays else 'first'} was stopped first"


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
