"""The three training tasks: real data made without a download, and networks too narrow for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

TaskName = Literal["mnist1d", "digits", "mnist5k"]
TASKS: tuple[str, ...] = get_args(TaskName)


@dataclass(frozen=True, slots=True)
class Split:
    """Inputs [samples, ...] float32 and class labels [samples] int64."""

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Task:
    """Data in three separate splits, and how to make the host network for it."""

    name: TaskName
    train: Split
    validation: Split
    test: Split
    batch_size: int
    learning_rate: float

    def network(self, seed: int) -> nn.Module:
        """The narrow network, initialised from `seed`; the global random state is left alone."""
        raise NotImplementedError

    def batches(self, seed: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Endless (epoch, inputs, labels) of the training split in an order that `seed` decides."""
        raise NotImplementedError


def load_task(name: str) -> Task:
    """Make a task's data. Raises DatasetError."""
    raise NotImplementedError
