"""Shorten the steps that an optimizer makes for some of its parameters."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

log = logging.getLogger(__name__)

_PROPORTIONAL = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Muon", "NAdam", "RAdam", "RMSprop", "SGD")
"""torch's other classes: Rprop ignores lr, ASGD and Adafactor make it smaller with time, LBFGS searches a length."""


class StepScaler:
    """p <- old + scale * (new - old) after every step of an optimizer, for the parameters that have a scale.

    If steps are proportional to lr, this equals a smaller lr (weight decay included, since torch multiplies it by lr),
    whatever a scheduler does with the group's lr, and also with a closure, a gradient scaler or `maximize`. It costs a
    copy of the scaled parameters per step.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        """Scale nothing yet; the optimizer has no hook until something is scaled."""
        self.scales: dict[Tensor, float] = {}
        """Scale by parameter, in (0, 1]; those that are absent have 1."""
        self._optimizer = optimizer
        self._before: dict[Tensor, Tensor] = {}
        self._depth = 0
        self._hooks: list[RemovableHandle] = []

    @property
    def obstacle(self) -> str:
        """Why steps cannot be scaled; empty if they can."""
        kind = type(self._optimizer)
        known = [getattr(torch.optim, name) for name in _PROPORTIONAL if hasattr(torch.optim, name)]
        step = inspect.unwrap(kind.step)
        if not any(issubclass(kind, each) and step is inspect.unwrap(each.step) for each in known):
            return f"the steps of {kind.__name__} are not known to be proportional to lr"
        if any(group.get("differentiable") for group in self._optimizer.param_groups):
            return f"{kind.__name__}(differentiable=True) records its steps for autograd"
        return ""

    def drop(self, parameters: Iterable[Tensor]) -> None:
        """End the scale of parameters that leave the optimizer."""
        for parameter in parameters:
            self.scales.pop(parameter, None)
            self._before.pop(parameter, None)

    def scale(self, parameter: Tensor, factor: float) -> None:
        """Multiply a parameter's scale by a factor in (0, 1]."""
        self._connect()
        self.scales[parameter] = self.scales.get(parameter, 1.0) * factor

    def replace(self, scales: Mapping[Tensor, float]) -> None:
        """Exchange all scales."""
        if scales:
            self._connect()
        self.scales, self._before, self._depth = dict(scales), {}, 0

    def complete(self) -> None:
        """Complete a training step: a step of the optimizer that raised an error has left nothing behind."""
        self._before, self._depth = {}, 0

    def close(self) -> None:
        """Remove the hooks: every rate is its group's lr again."""
        for hook in self._hooks:
            hook.remove()
        self._before = {}

    def _connect(self) -> None:
        """Hook into the optimizer, before all other hooks: some measure the update."""
        if self._hooks:
            return
        before: Any = self._optimizer._optimizer_step_pre_hooks
        after: Any = self._optimizer._optimizer_step_post_hooks
        self._hooks = [
            self._optimizer.register_step_pre_hook(self._remember),
            self._optimizer.register_step_post_hook(self._shorten),
        ]
        for hooks, own in zip((before, after), self._hooks, strict=True):
            hooks.move_to_end(own.id, last=False)

    # A class that overrides `step` and calls its parent's has the hooks called twice, one pair inside the other.

    def _remember(self, *_: Any) -> None:
        self._depth += 1
        if self._depth > 1 or not self.scales:
            return
        try:
            self._before = {parameter: parameter.detach().clone() for parameter in self.scales}
        except Exception as error:  # this is inside the user's optimizer.step()
            self._give_up(error)

    @torch.no_grad()
    def _shorten(self, *_: Any) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth or not self._before:
            return
        try:
            for parameter, before in self._before.items():
                parameter.lerp_(before, 1.0 - self.scales[parameter])
        except Exception as error:  # this is inside the user's optimizer.step()
            self._give_up(error)
        self._before = {}

    def _give_up(self, error: Exception) -> None:
        self.scales, self._before = {}, {}
        log.warning("slowed layers learn at their full rate again: %s: %s", type(error).__name__, error, exc_info=True)
