"""Hosts drawn at random from a seed, for policies that shall have seen many networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import nn

from tamiyo.evaluation.lab.hosts.networks import (
    Encoder,
    ResidualPerceptron,
    TextConvolutions,
    TextPerceptron,
    convolutions,
    perceptron,
)
from tamiyo.host._reference.networks import ResNet
from tamiyo.host._reference.source_text import VOCABULARY
from tamiyo.host._reference.tasks import Task, load_task

DATA = ("digits", "mnist1d", "mnist5k")
ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.Tanh, nn.GELU)
PIECES = {"digits": 8, "mnist1d": 8, "mnist5k": 28}
"""Pieces of equal size into which attention divides a sample: rows of an image, parts of a series."""


def drawn_host(seed: int) -> Task:
    """Return a host drawn at random: data, depth, widths, activation, learning rate, noise and samples differ.

    A policy that shall know when a network is too small, and when it is large enough, must have seen both, so widths
    are drawn from 3 to 48. Odd seeds are convolutional where the data allows.

    Args:
        seed: The same seed gives the same host.
    """
    rng = np.random.default_rng([2026, seed])
    data = DATA[seed % 3]
    widths = tuple(round(float(width)) for width in np.exp(rng.uniform(np.log(3), np.log(48), rng.integers(1, 5))))
    activation = ACTIVATIONS[rng.integers(3)]
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
        train=task.train.take(0, int(kept * len(task.train))),
    )


def varied_host(seed: int) -> Task:
    """Return a host of another architecture, drawn at random: attention, residual blocks, convolutions or text.

    Most are neither too small nor large enough for certain, and in many a kernel adds little to what is there: a policy
    that has seen only plain stacks of narrow layers grows them too. No dilated convolutions on text and no mixer are
    among them, which are held out.

    Args:
        seed: The same seed gives the same host; seeds that differ by a multiple of 7 have the same architecture.
    """
    rng = np.random.default_rng([2027, seed])
    data = DATA[seed // 7 % 3]
    kind = ("text", "attention", "residual", "text", "residual", "attention", "resnet")[seed % 7]
    if kind == "text":
        data = "charconv"  # its text, not its network
    elif kind == "resnet":
        data = "mnist5k"
    task = load_task(data)
    return replace(
        task,
        make_network=_varied(kind, data, task, rng),
        learning_rate=float(np.exp(rng.uniform(np.log(1e-3), np.log(8e-3)))),
        noise=0.0 if kind == "text" else float(rng.choice([0.0, 0.3, 0.6])),
        train=task.train.take(0, int(float(rng.choice([0.25, 0.5, 1.0, 1.0])) * len(task.train))),
    )


def text_host(seed: int) -> Task:
    """Return a convolutional network on text, drawn at random; its convolutions have strides, and no dilation.

    Args:
        seed: The same seed gives the same host.
    """
    rng = np.random.default_rng([2028, seed])
    task = load_task("charconv")  # its text, not its network
    activation = ACTIVATIONS[rng.integers(3)]
    context, embedding = int(rng.choice([8, 16, 32])), _width(rng, 4, 24)
    widths = tuple(_width(rng, 6, 48) for _ in range(int(rng.integers(1, 5))))
    return replace(
        task,
        make_network=lambda: TextConvolutions(VOCABULARY, context, embedding, widths, activation),
        learning_rate=float(np.exp(rng.uniform(np.log(1e-3), np.log(8e-3)))),
        train=task.train.take(0, int(float(rng.choice([0.25, 0.5, 1.0, 1.0])) * len(task.train))),
    )


def _width(rng: np.random.Generator, low: float, high: float) -> int:
    """Return a width drawn between two others, their ratio counting."""
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))


def _varied(kind: str, data: str, task: Task, rng: np.random.Generator) -> Callable[[], nn.Module]:
    activation = ACTIVATIONS[rng.integers(3)]
    numbers = task.train.inputs[0].numel()
    blocks = int(rng.integers(1, 4))
    if kind == "text":
        context, embedding = int(rng.choice([4, 8, 16])), _width(rng, 4, 24)
        widths = tuple(_width(rng, 6, 96) for _ in range(blocks))
        return lambda: TextPerceptron(VOCABULARY, context, embedding, widths, activation)
    if kind == "attention":
        heads = int(rng.choice([1, 2]))
        features = heads * _width(rng, 3, 12)
        pieces = PIECES[data]
        return lambda: Encoder(pieces, numbers // pieces, width=features, heads=heads, blocks=blocks)
    if kind == "residual":
        features, hidden = _width(rng, 4, 32), _width(rng, 3, 32)
        return lambda: ResidualPerceptron(numbers, features, hidden, blocks, activation)
    features = _width(rng, 2, 6)
    return lambda: ResNet(width=features)
