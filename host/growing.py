"""The optimiser's side of growth: parameters that come, go, or slow down while training runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class GrowingOptimizer:
    """Grows and shrinks a torch optimizer (Adam, AdamW, SGD and others whose step is proportional to lr) in place.

    A kernel's parameters join the param group of the layer they sit at, so its hyper-parameters and every
    learning rate scheduler apply to them, and the number of groups never changes. A layer's own learning rate is
    scaled by shortening its step after the optimiser has made it: the same as a smaller lr, and no scheduler sees it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None: ...

    def add(self, kernel: nn.Module, *, beside: Iterable[nn.Parameter], name: str = "kernel") -> int:
        """Train a kernel's parameters in the group of the layer's (`beside`); returns the group's index."""
        raise NotImplementedError

    def drop(self, parameters: Iterable[nn.Parameter]) -> int:
        """Take parameters out, with their state and gradient; returns how many there were. Others keep theirs."""
        raise NotImplementedError

    def forget(self, parameters: Iterable[nn.Parameter]) -> None:
        """Drop the optimiser's state of these (their values were replaced), and keep training them."""

    def scale_learning_rate(self, parameters: Iterable[nn.Parameter], factor: float) -> float:
        """Multiply the learning rate of these parameters by `factor`; returns the scale they have now."""
        raise NotImplementedError

    def learning_rate(self, parameter: nn.Parameter) -> float:
        """The rate this parameter learns at now: its group's lr times its scale."""
        raise NotImplementedError

    def close(self) -> None:
        """Take the hooks off; scales end, grown parameters stay."""


def named_state_dict(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """The optimiser's state by parameter name, which a grown model can be resumed from."""
    raise NotImplementedError


def load_named_state_dict(optimizer: torch.optim.Optimizer, model: nn.Module, state: dict[str, Any]) -> None:
    """Put a named state back; parameters of the model that the optimiser lacks (kernels) join it."""
