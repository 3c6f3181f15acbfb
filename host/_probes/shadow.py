"""The copy of a run that trains without an adaptation."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from tamiyo.host._common.copying import copied
from tamiyo.host._common.device import read_all
from tamiyo.host._common.random_streams import RandomStreams
from tamiyo.host._layers.grown_kernels import kernels_of
from tamiyo.host._topology.tracing import call
from tamiyo.schemas.adaptation import AdaptationDecision

Batch = tuple[Any, Any]
"""(inputs, targets) of a training step, as `loss_fn(model(inputs), targets)` takes them."""

LossFunction = Callable[[Any, Any], Tensor]

COMPARED_LOSSES = 50
"""Training losses that are compared where there is no held-out batch: of the same batches, so few are enough."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class CopyableOptimizer(Protocol):
    """What a shadow needs of the `GrowingOptimizer`."""

    optimizers: tuple[torch.optim.Optimizer, ...]

    def copied(self, memo: dict[int, Any]) -> Self:
        """Return a copy whose parameters are those in deepcopy's `memo`."""

    def drop(self, parameters: Iterable[nn.Parameter]) -> int:
        """Stop training some parameters."""

    def forget(self, parameters: Iterable[nn.Parameter]) -> None:
        """Drop the state of some parameters."""


class Shadow:
    """Model, optimiser and random streams as they were, without the user's hooks; it trains on the batches it is given.

    Its methods belong inside `streams.swapped()`. Modes (train or eval) and `requires_grad` stay as they were copied.
    It trains in the precision of the parameters, without gradient clipping.
    """

    def __init__(
        self,
        model: nn.Module,
        growing: CopyableOptimizer,
        loss_fn: LossFunction,
        decision: AdaptationDecision,
        probability: float,
    ) -> None:
        """Copy the run as it is now.

        Args:
            model: The attached model; it stays as it is.
            growing: Its optimiser.
            loss_fn: Returns the mean loss, nats; a module is copied, a function is shared.
            decision: The adaptation about to be executed.
            probability: Probability with which it was chosen.
        """
        assert decision.layer_id is not None
        self.decision = decision
        self.layer_id = decision.layer_id
        self.probability = probability
        self.steps = 0
        """Optimiser steps so far."""
        self.seconds = 0.0
        """Time that they took."""
        self.losses: deque[tuple[Tensor | float, Tensor]] = deque(maxlen=COMPARED_LOSSES)
        """The loop's loss and the copy's on the latest batches."""
        self.streams = RandomStreams(devices(model))
        memo = _without_hooks(model)
        self.model: nn.Module = copied(model, memo)
        self._loss_fn = copy.deepcopy(loss_fn, memo) if isinstance(loss_fn, nn.Module) else loss_fn
        self._growing = growing.copied(memo)
        kernels = kernels_of(self.model)
        self._layers = [] if kernels is None else list(kernels.layers.values())
        for layer in self._layers:
            layer.reconnect()
            layer.recovery.on_replaced = self._growing.forget
        self._accumulated = 0

    def accumulate(self, batch: Batch) -> Tensor:
        """Add the gradient of a batch to those since the last step; return its loss, nats."""
        inputs, targets = batch
        with torch.enable_grad():
            loss = self._loss_fn(call(self.model, inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
        self._accumulated += 1
        return loss.detach()

    def step(self, hyper_parameters: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """Make a step of each optimiser with the mean gradient of the accumulated batches.

        Args:
            hyper_parameters: For each optimiser, the values of each param group, such as its lr.
        """
        if self._accumulated > 1:
            torch._foreach_div_(self._gradients(), float(self._accumulated))
        for optimizer, groups in zip(self._growing.optimizers, hyper_parameters, strict=True):
            for group, values in zip(optimizer.param_groups, groups, strict=True):
                group.update(values)
            optimizer.step()
        for optimizer in self._growing.optimizers:
            optimizer.zero_grad()
        self._accumulated = 0
        self.steps += 1

    def advance(self, step: int) -> None:
        """Move the kernels that the copy has on to `step`, as the run does between two steps."""
        for layer in self._layers:
            for dropped in layer.advance(step):
                self._growing.drop(dropped.kernel.parameters())

    def gradient_ratio(self, model: nn.Module) -> float:
        """Return the norm of the mean accumulated gradient / that of the run, over the parameters of both.

        Args:
            model: The run's model.

        Returns:
            1 if one of them is not known, or 0: the loop may have cleared its gradients already.
        """
        own = dict(model.named_parameters())
        pairs = [(p.grad, own[name].grad) for name, p in self.model.named_parameters() if name in own]
        both = [(mine, theirs) for mine, theirs in pairs if mine is not None and theirs is not None]
        if not both:
            return 1.0
        norms = read_all([torch.stack(torch._foreach_norm(list(each))).norm() for each in zip(*both, strict=True)])
        ratio = norms[0] / self._accumulated / norms[1] if norms[1] > 0 else 1.0
        return ratio if math.isfinite(ratio) and ratio > 0 else 1.0

    def _gradients(self) -> list[Tensor]:
        groups = [group for optimizer in self._growing.optimizers for group in optimizer.param_groups]
        return [p.grad for group in groups for p in group["params"] if p.grad is not None]


def devices(model: nn.Module) -> set[torch.device]:
    """Return the devices of a model's parameters."""
    return {parameter.device for parameter in model.parameters()}


def _without_hooks(model: nn.Module) -> dict[int, Any]:
    """Return a memo with which deepcopy leaves out the hooks of the user, which must not see the copy's passes.

    torch's own, such as that of weight_norm, are part of the computation and stay.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name in _HOOKS:
            hooks: OrderedDict[int, Any] = getattr(module, name)
            kept = {key: hook for key, hook in hooks.items() if type(hook).__module__.startswith("torch.")}
            memo[id(hooks)] = OrderedDict(kept)
    return memo
