"""The plain alternative to growing: a network of the same kind, wider from the start."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from tamiyo.host._reference.networks import CharConv, Mixer, ResNet, Transformer
from tamiyo.host._reference.tasks import Task
from tamiyo.schemas.errors import ConfigurationError


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
