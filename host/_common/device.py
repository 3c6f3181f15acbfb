"""Read values and sizes from the device that a model trains on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def read_all(scalars: Sequence[Tensor]) -> list[float]:
    """Return the values of one-element tensors, with a single transfer from each device.

    Args:
        scalars: Of any shapes with one element, on any devices.

    Raises:
        RuntimeError: A tensor has no or several elements.
    """
    values = [0.0] * len(scalars)
    elsewhere: defaultdict[torch.device, list[int]] = defaultdict(list)
    for index, each in enumerate(scalars):
        if each.is_cpu:
            values[index] = each.item()
        else:
            elsewhere[each.device].append(index)
    for indices in elsewhere.values():
        found = torch.stack([scalars[index].detach().reshape(()).float() for index in indices]).tolist()
        for index, value in zip(indices, found, strict=True):
            values[index] = value
    return values


def memory_bytes(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Return the memory of parameters, gradients and the optimisers' state, bytes."""
    tensors = [t for p in model.parameters() for t in (p, p.grad) if t is not None]
    tensors += [
        value
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    return sum(t.numel() * t.element_size() for t in tensors)
