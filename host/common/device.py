"""Read values and sizes from the device that a model trains on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def read_all(scalars: Sequence[Tensor]) -> list[float]:
    """Return the values of one-element tensors, with a single transfer if they are not in main memory."""
    if all(each.device.type == "cpu" for each in scalars):
        return [each.item() for each in scalars]
    return [float(v) for v in torch.stack([each.reshape(()).float() for each in scalars]).tolist()]


def memory_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Return the memory of parameters, gradients and optimiser state, bytes."""
    tensors = [t for p in model.parameters() for t in (p, p.grad) if t is not None]
    tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)
