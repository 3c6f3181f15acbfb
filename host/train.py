"""The reference host: one training loop, with Tamiyo or without (the static twin)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from tamiyo.host.handle import Handle
from tamiyo.host.tasks import Task


@dataclass(frozen=True, slots=True)
class Workload:
    """A task's network and optimiser as a seed makes them."""

    task: Task
    seed: int
    steps: int
    model: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands."""

    step: int
    steps: int
    train_loss: float
    validation_loss: float | None
    validation_accuracy: float | None
    parameters: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run came to; overhead_ratio and dropped_records are 0 without Tamiyo."""

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
    validate_interval: int = 100,
    should_stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train; without `attach_with` this is the static twin: the same network, data order and steps."""
    raise NotImplementedError
