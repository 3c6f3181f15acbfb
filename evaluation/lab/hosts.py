"""More hosts to fit the estimator to: multilayer perceptrons of several shapes on the reference tasks' data.

They are cheap to train, and they differ in what the estimator must not depend on: width, depth, activation, how much
the data is noisy, and how soon the network overfits. `wider` is for comparison: the plain alternative to growing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import nn

from tamiyo.host._reference.networks import CharConv, Mixer, ResNet, Transformer
from tamiyo.host._reference.tasks import Split, Task, load_task
from tamiyo.schemas.errors import ConfigurationError

STEPS = 1200
"""Length of a run of these hosts."""


def perceptron(inputs: int, widths: tuple[int, ...], activation: type[nn.Module] = nn.ReLU) -> Callable[[], nn.Module]:
    """Return what makes a perceptron of `widths` hidden layers on flattened `inputs`, with ten classes."""

    def make() -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        before = inputs
        for width in widths:
            layers += [nn.Linear(before, width), activation()]
            before = width
        return nn.Sequential(*layers, nn.Linear(before, 10))

    return make


def convolutions(
    widths: tuple[int, ...], activation: type[nn.Module] = nn.ReLU, *, dimensions: int
) -> Callable[[], nn.Module]:
    """Return what makes a convolutional network: a layer of each width, with stride 2, then the mean and ten classes.

    Args:
        widths: Channels of each layer.
        activation: After each layer.
        dimensions: Of the data, without its one channel: 1 or 2.
    """
    layer: type[nn.Module] = nn.Conv1d if dimensions == 1 else nn.Conv2d
    pool: type[nn.Module] = nn.AdaptiveAvgPool1d if dimensions == 1 else nn.AdaptiveAvgPool2d

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        before = 1
        for width in widths:
            layers += [layer(before, width, kernel_size=3, stride=2, padding=1), activation()]
            before = width
        return nn.Sequential(*layers, pool(1), nn.Flatten(), nn.Linear(before, 10))

    return make


def _first(task: Task, samples: int) -> Split:
    return task.train.take(0, samples)


HOSTS: dict[str, Callable[[], Task]] = {
    "digits_deep": lambda: _host("digits", perceptron(64, (6, 6, 6, 6)), learning_rate=6e-3),
    "digits_clean": lambda: _host("digits", perceptron(64, (4, 4)), learning_rate=1e-2, noise=0.0),
    "digits_wide": lambda: _host("digits", perceptron(64, (16, 12), nn.Tanh), learning_rate=5e-3),
    "mnist1d_flat": lambda: _host("mnist1d", perceptron(40, (8, 8)), learning_rate=6e-3),
    "mnist1d_gelu": lambda: _host("mnist1d", perceptron(40, (12, 8, 6), nn.GELU), learning_rate=2e-3),
    "mnist5k_flat": lambda: _host("mnist5k", perceptron(784, (4, 6)), learning_rate=2e-3),
    "mnist5k_few": lambda: replace(
        _host("mnist5k", perceptron(784, (5, 5, 5)), learning_rate=3e-3), train=_first(load_task("mnist5k"), 900)
    ),
}
"""By name."""


DRAWN = "host-"
"""A name such as host-7 is a network drawn at random from the seed 7: see `drawn_host`."""


@cache
def lab_task(name: str) -> Task:
    """Return a task of the laboratory: one of these hosts, or a reference task; raises DatasetError if unknown."""
    number = name.removeprefix(DRAWN)
    if name.startswith(DRAWN) and number.isdecimal():
        return replace(drawn_host(int(number)), name=name, steps=STEPS)
    return replace(HOSTS[name](), name=name, steps=STEPS) if name in HOSTS else load_task(name)


def drawn_host(seed: int) -> Task:
    """Return a host drawn at random: data, depth, widths, activation, learning rate, noise and samples differ.

    A policy that shall know when a network is too small, and when it is large enough, must have seen both, so widths
    are drawn from 3 to 48. Odd seeds are convolutional where the data allows.

    Args:
        seed: The same seed gives the same host.
    """
    rng = np.random.default_rng([2026, seed])
    data = ("digits", "mnist1d", "mnist5k")[seed % 3]
    widths = tuple(round(float(width)) for width in np.exp(rng.uniform(np.log(3), np.log(48), rng.integers(1, 5))))
    activation = (nn.ReLU, nn.Tanh, nn.GELU)[rng.integers(3)]
    task = load_task(data)
    if data != "digits" and seed % 2:
        network = convolutions(widths, activation, dimensions=task.train.inputs.dim() - 2)
    else:
        network = perceptron(task.train.inputs[0].numel(), widths, activation)
    kept = float(rng.choice([0.25, 0.5, 1.0, 1.0]))
    return replace(
        task,
        make_network=network,
        learning_rate=float(np.exp(rng.uniform(np.log(1e-3), np.log(1e-2)))),
        noise=float(rng.choice([0.0, 0.2, 0.5])),
        train=_first(task, int(kept * len(task.train))),
    )


def _host(
    data: str, network: Callable[[], nn.Module], *, learning_rate: float = 2e-3, noise: float | None = None
) -> Task:
    task = load_task(data)
    noise = task.noise if noise is None else noise
    return replace(task, make_network=network, learning_rate=learning_rate, noise=noise)


def wider(task: Task, parameters: int) -> Task:
    """Return the task with a network of one kind, scaled to the number of parameters nearest to `parameters`.

    All hidden widths are scaled by one factor; inputs, outputs and depth stay. The network is never narrower than the
    task's own.

    Args:
        task: The task.
        parameters: Trainable numbers that the network should have.

    Raises:
        ConfigurationError: The widths of the task's network cannot be scaled.
    """
    widths = _widths(task)
    below = above = widths.base
    while _count(widths, above) < parameters:
        below, above = above, above + widths.step
    width = min((below, above), key=lambda each: abs(_count(widths, each) - parameters))
    return replace(task, make_network=lambda: widths.make(width))


@dataclass(frozen=True, slots=True)
class _Widths:
    """The networks of one kind, by the width of their widest hidden layer."""

    base: int
    """Of the task's own network."""
    make: Callable[[int], nn.Module]
    step: int = 1


def _widths(task: Task) -> _Widths:
    with torch.device("meta"):  # its shape only: no memory, no random numbers
        plain = task.make_network()
    match plain:
        case CharConv():
            return _Widths(
                plain.embedding.embedding_dim, lambda width: CharConv(plain.embedding.num_embeddings, width=width)
            )
        case Mixer():
            return _Widths(plain.head.in_features, lambda width: Mixer(width=width, hidden=width))
        case ResNet():
            return _Widths(plain.stem.out_channels, lambda width: ResNet(width=width))
        case Transformer():
            context, width = plain.positions.shape
            vocabulary = plain.embedding.num_embeddings
            heads = 4  # a width must be divisible by them
            return _Widths(width, lambda width: Transformer(vocabulary, context, width=width, heads=heads), step=heads)
        case nn.Sequential():
            base = max(_size(layer) for layer in _layers(plain)[:-1])
            return _Widths(base, lambda width: _scaled(plain, width / base))
    raise ConfigurationError(f"the widths of task {task.name}'s {type(plain).__name__} cannot be scaled")


def _count(widths: _Widths, width: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in widths.make(width).parameters())


def _layers(network: nn.Sequential) -> list[nn.Module]:
    return [module for module in network if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)]


def _size(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def _scaled(network: nn.Sequential, factor: float) -> nn.Sequential:
    """Return a fresh network of the same modules, whose hidden layers are `factor` times as wide."""
    return nn.Sequential(*_scaled_modules(network, factor))


def _scaled_modules(network: nn.Sequential, factor: float) -> Iterator[nn.Module]:
    last = _layers(network)[-1]
    before: tuple[int, int] | None = None  # width of the layer before: as it was, and as it is
    for module in network:
        if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            yield copy.deepcopy(module)
            continue
        old = _size(module)
        new = old if module is last else round(factor * old)
        inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
        if before is not None:
            inputs = inputs // before[0] * before[1]  # several positions of each channel after a Flatten
        if isinstance(module, nn.Linear):
            yield nn.Linear(inputs, new)
        else:
            made = type(module)(inputs, new, module.kernel_size, module.stride, module.padding)  # type: ignore[arg-type]
            yield made
        before = (old, new)
