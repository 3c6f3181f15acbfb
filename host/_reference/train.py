"""The reference host: a training loop with Tamiyo, or without (the static twin)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tamiyo.host._attachment import attach
from tamiyo.host._common.undisturbed import evaluating
from tamiyo.host._handle import Handle
from tamiyo.host._reference.tasks import Split, Task

VALIDATE_INTERVAL = 50
"""Steps between two validations."""


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """A task's network and optimiser, initialised from a seed, and the length of their training."""

    task: Task
    seed: int
    steps: int
    model: nn.Module
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, task: Task, *, seed: int, steps: int) -> Workload:
        """Return a workload; the same task and seed give the same network, whatever the global random state."""
        model = task.network(seed)
        return cls(task, seed, steps, model, task.optimizer(model))

    def attach(self, **options: Any) -> Handle:
        """Attach the network with the task's example, loss and held-out batch; `options` are those of `attach`."""
        held_out = self.task.held_out()
        defaults: dict[str, Any] = {
            "example_input": self.task.train.inputs[:2],
            "loss_fn": F.cross_entropy,
            "held_out": (held_out.inputs, held_out.labels),
            "task": self.task.name,
            "planned_steps": self.steps,
        }
        return attach(self.model, self.optimizer, **defaults | options)


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a run after a validation: losses in nats, time in seconds."""

    step: int
    steps: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    parameters: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The result of a run: losses in nats. overhead_ratio and dropped_records are 0 without Tamiyo."""

    task: str
    seed: int
    steps: int
    test_accuracy: float
    test_loss: float
    validation_loss: float
    validation_accuracy: float
    parameters: int
    wall_seconds: float
    overhead_ratio: float
    dropped_records: int


def train(
    task: Task,
    *,
    seed: int = 0,
    steps: int = 3000,
    attach_with: Callable[[Workload], Handle] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    validate_interval: int = VALIDATE_INTERVAL,
    should_stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train a task's network.

        train(load_task("mnist1d"), seed=1, attach_with=lambda workload: workload.attach(run_id="mine"))

    Args:
        task: Data and network.
        seed: Decides the initial parameters and the order of the data.
        steps: Optimiser steps.
        attach_with: Attaches the workload; None: train the static twin, the same network, data and steps.
        on_progress: Called after every validation.
        validate_interval: Steps between two validations.
        should_stop: Called before each step; True ends the run there.

    Returns:
        The result of the steps that were completed. The test split is used once, for it. `wall_seconds` is the time of
        the loop with its validations, without attaching, closing and the test.
    """
    workload = Workload.of(task, seed=seed, steps=steps)
    handle = attach_with(workload) if attach_with is not None else None
    try:
        done, seconds = _loop(workload, handle, on_progress, validate_interval, should_stop)
    finally:
        if handle is not None:
            handle.close()
    test_loss, test_accuracy = evaluate(workload.model, task.test)
    validation_loss, validation_accuracy = evaluate(workload.model, task.validation)
    stats = handle.stats if handle is not None else None
    return TrainResult(
        task=task.name,
        seed=seed,
        steps=done,
        test_accuracy=test_accuracy,
        test_loss=test_loss,
        validation_loss=validation_loss,
        validation_accuracy=validation_accuracy,
        parameters=sum(p.numel() for p in workload.model.parameters()),
        wall_seconds=seconds,
        overhead_ratio=stats.overhead_ratio if stats else 0.0,
        dropped_records=stats.dropped_records if stats else 0,
    )


def evaluate(model: nn.Module, split: Split) -> tuple[float, float]:
    """Return the mean cross-entropy (nats) and the accuracy (0..1) on a split, in eval mode."""
    with evaluating(model):
        logits: Tensor = model(split.inputs)
        loss = float(F.cross_entropy(logits, split.labels))
        accuracy = float((logits.argmax(dim=1) == split.labels).float().mean())
    return loss, accuracy


def steps(workload: Workload, handle: Handle | None) -> Iterator[Tensor]:
    """Train one step per item, without end; yield the loss of each training batch."""
    model, optimizer, task = workload.model, workload.optimizer, workload.task
    model.train()
    for epoch, inputs, labels in task.batches(workload.seed):
        logits = model(inputs)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if handle is not None:
            handle.epoch = epoch
            correct = (logits.argmax(dim=1) == labels).float().mean() if handle.sampling else None
            handle.step(loss=loss, accuracy=correct, batch=(inputs, labels))
        yield loss


def _loop(
    workload: Workload,
    handle: Handle | None,
    on_progress: Callable[[Progress], None] | None,
    validate_interval: int,
    should_stop: Callable[[], bool] | None,
) -> tuple[int, float]:
    """Train; return the completed steps and their time, seconds."""
    started = time.perf_counter()
    training = steps(workload, handle)
    for step in range(1, workload.steps + 1):
        if should_stop is not None and should_stop():
            return step - 1, time.perf_counter() - started
        loss = next(training)
        if step % validate_interval == 0:
            found = _validate(workload, handle)
            if on_progress is not None:
                on_progress(
                    Progress(
                        step=step,
                        steps=workload.steps,
                        train_loss=float(loss.detach()),
                        validation_loss=found[0],
                        validation_accuracy=found[1],
                        parameters=sum(p.numel() for p in workload.model.parameters()),
                        seconds=time.perf_counter() - started,
                    )
                )
    return workload.steps, time.perf_counter() - started


def _validate(workload: Workload, handle: Handle | None) -> tuple[float, float]:
    """Return validation loss and accuracy, published through the handle if there is one."""

    def run() -> tuple[float, float]:
        return evaluate(workload.model, workload.task.validation)

    return run() if handle is None else handle.validate(run)
