"""More hosts to fit the estimator to: multilayer perceptrons of several shapes on the reference tasks' data.

They are cheap to train, and they differ in what the estimator must not depend on: width, depth, activation, how much
the data is noisy, and how soon the network overfits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
from torch import nn

from tamiyo.host._reference.tasks import Split, Task, load_task

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
