"""More hosts to fit to: small networks of several shapes on the reference tasks' data.

They are cheap to train, and they differ in what neither estimator nor policy may depend on: width, depth, activation,
architecture, how much the data is noisy, and how soon the network overfits. `wider` is for comparison: the plain
alternative to growing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from torch import nn

from tamiyo.evaluation.lab.hosts.drawn import drawn_host, text_host, varied_host
from tamiyo.evaluation.lab.hosts.networks import perceptron
from tamiyo.host._reference.tasks import Task, load_task

STEPS = 1200
"""Length of a run of these hosts."""

HOSTS: dict[str, Callable[[], Task]] = {
    "digits_deep": lambda: _host("digits", perceptron(64, (6, 6, 6, 6)), learning_rate=6e-3),
    "digits_clean": lambda: _host("digits", perceptron(64, (4, 4)), learning_rate=1e-2, noise=0.0),
    "digits_wide": lambda: _host("digits", perceptron(64, (16, 12), nn.Tanh), learning_rate=5e-3),
    "mnist1d_flat": lambda: _host("mnist1d", perceptron(40, (8, 8)), learning_rate=6e-3),
    "mnist1d_gelu": lambda: _host("mnist1d", perceptron(40, (12, 8, 6), nn.GELU), learning_rate=2e-3),
    "mnist5k_flat": lambda: _host("mnist5k", perceptron(784, (4, 6)), learning_rate=2e-3),
    "mnist5k_few": lambda: replace(
        _host("mnist5k", perceptron(784, (5, 5, 5)), learning_rate=3e-3), train=load_task("mnist5k").train.take(0, 900)
    ),
}
"""By name."""


DRAWN: dict[str, Callable[[int], Task]] = {
    "host": drawn_host,
    "varied": varied_host,
    "text": text_host,
}
"""What draws a network at random, by the beginning of its name: host-7 is drawn from the seed 7."""


@cache
def lab_task(name: str) -> Task:
    """Return a task of the laboratory: one of these hosts, or a reference task; raises DatasetError if unknown."""
    if (drawn := _drawn(name)) is not None:
        draw, seed = drawn
        return replace(draw(seed), name=name, steps=STEPS)
    return replace(HOSTS[name](), name=name, steps=STEPS) if name in HOSTS else load_task(name)


def is_drawn(name: str) -> bool:
    """Return whether a name is that of a network drawn at random, such as host-7."""
    return _drawn(name) is not None


def _drawn(name: str) -> tuple[Callable[[int], Task], int] | None:
    prefix, _, number = name.partition("-")
    draw = DRAWN.get(prefix)
    if draw is None or not re.fullmatch("[0-9]{1,18}", number):
        return None
    return draw, int(number)


def _host(
    data: str, network: Callable[[], nn.Module], *, learning_rate: float = 2e-3, noise: float | None = None
) -> Task:
    task = load_task(data)
    noise = task.noise if noise is None else noise
    return replace(task, make_network=network, learning_rate=learning_rate, noise=noise)
