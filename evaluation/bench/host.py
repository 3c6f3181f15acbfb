"""The overhead of the SDK on a training step: a network with it and without it, in turns."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tamiyo.evaluation.common.measure import Result
from tamiyo.host import Handle, HostSettings, KafkaTransport
from tamiyo.host._reference.tasks import Split, Task, load_task
from tamiyo.host._reference.train import Workload, steps
from tamiyo.schemas.kafka import KafkaSettings

BLOCK = 100
"""Steps in a turn: a multiple of every probe's interval, so that every turn contains the same work."""
OFFSET = 10
"""Steps before the first turn, so that no turn ends with a frame that the next one sends."""


@dataclass(frozen=True)
class Budget:
    """The largest overhead on a step, and the shortest step that it is for: faster machines get larger batches."""

    overhead: float
    step_s: float


SHORT, LONG = Budget(0.10, 0.0005), Budget(0.03, 0.005)
LOOPS: dict[str, tuple[Budget, float]] = {
    "mnist1d": (SHORT, 1.0),
    "digits": (SHORT, 3.0),
    "mnist5k": (SHORT, 1.0),
    "mlp": (LONG, 0.3),
    "chars": (LONG, 0.2),
    "resnet": (LONG, 0.6),
}
"""Loops that are measured, each with its budget and the share of the turns: steps take from .5 to 20 ms."""
TIMED_STEPS = 50
TURNS = 10


def loop(name: str) -> Task:
    """Return one of `LOOPS`; `mlp` is one of 512 units on random inputs, the others are tasks of the reference host."""
    if name != "mlp":
        return load_task(name)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4096, 512, generator=generator)
    split = Split(inputs, (inputs[:, 0] > 0).long())

    def network() -> nn.Module:
        layers = [layer for _ in range(4) for layer in (nn.Linear(512, 512), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(512, 2))

    return Task("mlp", split, split.take(0, 512), split.take(512, 1024), network, batch_size=128, learning_rate=1e-4)


def long_enough(task: Task, step_s: float) -> Task:
    """Return the task with its batches doubled until a step takes `step_s`."""
    while 4 * task.batch_size <= len(task.train):
        training = steps(Workload.of(task, seed=0, steps=TURNS * TIMED_STEPS), None)
        if min(_turn(training, TIMED_STEPS).wall_s for _ in range(TURNS)) >= TIMED_STEPS * step_s:
            break
        task = replace(task, batch_size=2 * task.batch_size)
    return task


def overhead(bootstrap_servers: str, *, name: str, blocks: int, repeats: int) -> list[Result]:
    """Train two equal networks in turns of `BLOCK` steps, `blocks` turns a repeat; no decisions arrive, so none grows.

    Other load on the machine affects neighbouring turns alike. Two equal networks without the SDK differ by 2 % too,
    by where their memory lies, so half of the repeats have a pair of which the one with the SDK was made first, and the
    others one of which it was made last. Wall time is what a user waits for; processor time includes all threads,
    librdkafka's too, whether or not training waited for them.
    """
    budget, share = LOOPS[name]
    blocks = max(1, round(share * blocks))
    prepared = long_enough(loop(name), budget.step_s)
    transports = [KafkaTransport(KafkaSettings(bootstrap_servers=bootstrap_servers)) for _ in range(2)]
    halves = [
        _pairs(prepared, transport, attached_first=first, blocks=blocks, repeats=(repeats + 1) // 2)
        for first, transport in zip((True, False), transports, strict=True)
    ]
    pairs = [pair for half in halves for pair in half.pairs]
    extra = {
        "task": name,
        "batch": prepared.batch_size,
        "steps": blocks * BLOCK,
        "step_ms_without": min(each.wall_s for each, _ in pairs) / (blocks * BLOCK) * 1000,
        "step_ms_with": min(each.wall_s for _, each in pairs) / (blocks * BLOCK) * 1000,
        "reported_by_the_sdk": [half.reported for half in halves],
        "steps_between_frames": [half.interval for half in halves],
        "dropped_records": sum(half.dropped for half in halves),
        "budget": budget.overhead,
    }
    wall = tuple(attached.wall_s / without.wall_s - 1 for without, attached in pairs)
    cpu = tuple(attached.cpu_s / without.cpu_s - 1 for without, attached in pairs)
    return [
        Result("SDK", f"overhead on the step, {name}", "ratio", wall, "lower", extra),
        Result("SDK", "the same in processor time, all threads", "ratio", cpu, "lower", {"task": name}),
    ]


@dataclass(frozen=True)
class _Half:
    """The repeats of one pair of networks."""

    pairs: list[tuple[_Spent, _Spent]]
    """Time without the SDK and with it."""
    reported: float
    interval: float
    dropped: int


def _pairs(prepared: Task, transport: KafkaTransport, *, attached_first: bool, blocks: int, repeats: int) -> _Half:
    def workload() -> Workload:
        return Workload.of(prepared, seed=0, steps=(repeats * blocks + 3) * BLOCK)

    with tempfile.TemporaryDirectory(prefix="tamiyo-bench-") as folder:
        settings = HostSettings(store_url=f"file://{folder}", drain_s=0.0)
        bare = None if attached_first else workload()
        attached = workload()
        handle = attached.attach(run_id=f"bench-host-{uuid.uuid4().hex[:8]}", settings=settings, transport=transport)
        without, with_sdk = _Side(steps(bare or workload(), None), handle), _Side(steps(attached, handle), None)
        try:
            without.block(), with_sdk.block(OFFSET), with_sdk.block(2 * BLOCK)  # warm-up; the governor settles
            pairs = [
                (without.total(before), with_sdk.total(during))
                for _ in range(repeats)
                for before, during in [_turns(without, with_sdk, blocks)]
            ]
            stats = handle.stats
            return _Half(pairs, stats.overhead_ratio, handle.sample_interval, stats.dropped_records)
        finally:
            handle.close()


@dataclass(frozen=True)
class _Spent:
    wall_s: float
    cpu_s: float


class _Side:
    """One of the two networks; the time of its turns does not count as the other one's training."""

    def __init__(self, training: Iterator[Tensor], other: Handle | None) -> None:
        self._training = training
        self._other = other

    def block(self, length: int = BLOCK) -> _Spent:
        with self._other.outside() if self._other is not None else nullcontext():
            return _turn(self._training, length)

    @staticmethod
    def total(blocks: list[_Spent]) -> _Spent:
        return _Spent(sum(each.wall_s for each in blocks), sum(each.cpu_s for each in blocks))


def _turn(training: Iterator[Tensor], length: int) -> _Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(length):
        next(training)
    return _Spent(time.perf_counter() - wall, time.process_time() - cpu)


def _turns(first: _Side, second: _Side, blocks: int) -> tuple[list[_Spent], list[_Spent]]:
    pairs = [(first.block(), second.block()) for _ in range(blocks)]
    return [each for each, _ in pairs], [each for _, each in pairs]
