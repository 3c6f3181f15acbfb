"""A computed clock: the time of a run follows from the operations it performs, so that it repeats bit by bit.

A leaf module's forward pass costs a fixed time for its operators plus a time per multiply-add and per element; the
backward pass of a training step costs twice the forward pass, and the optimiser a time per tensor and per parameter.
The constants are fitted to one core of the machine in `evaluation/results`: `python -m
tamiyo.evaluation.lab.calibration` prints computed beside measured times of a step for every task.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from tamiyo.host._common import clock
from tamiyo.host._layers.kasmina_layer import KERNELS

START_MS = 1_767_225_600_000  # 2026-01-01, the time of day at which every run of the laboratory begins

STEP_SECONDS = 200e-6
"""Fixed cost of a training step: the loss, the gradients' reset, the loop."""
OPERATOR_SECONDS = 22e-6
MULTIPLY_ADDS_PER_SECOND = 4e10
ELEMENTS_PER_SECOND = 8e8
BACKWARD = 2.0
"""Cost of the backward pass, in forward passes."""
TENSOR_SECONDS = 10e-6
"""Of the optimiser, for each tensor of parameters."""
PARAMETERS_PER_SECOND = 3e8
"""Parameters that the optimiser updates."""


def forward_seconds(module: nn.Module, output: Tensor) -> float:
    """Return the computed time of a leaf module's forward pass."""
    weight = getattr(module, "weight", None)
    multiply_adds = 0
    if isinstance(module, nn.Linear):
        multiply_adds = output.numel() * module.in_features
    elif isinstance(module, nn.Conv1d | nn.Conv2d) and isinstance(weight, Tensor):
        multiply_adds = output.numel() * weight[0].numel()
    return OPERATOR_SECONDS + multiply_adds / MULTIPLY_ADDS_PER_SECOND + output.numel() / ELEMENTS_PER_SECOND


class ComputeClock:
    """A clock that advances with the operations of one run, inside `running`."""

    def __init__(self) -> None:
        self.training_seconds = 0.0
        """Computed time of the training steps so far: the run's compute. Validations and probes do not count."""
        self._now = 0.0
        self._forward = 0.0
        """Of training passes since the last completed step."""
        self._quiet = False
        self._training = False

    def seconds(self) -> float:
        """Return the computed time since the run began, seconds."""
        return self._now

    def thread_seconds(self) -> float:
        """Return the computed time too: nothing runs beside the run."""
        return self._now

    def time_ms(self) -> int:
        """Return the computed time of day, milliseconds since the epoch, UTC."""
        return START_MS + int(self._now * 1000)

    def complete_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Add the backward pass and the optimiser's update of the step just trained."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        update = len(parameters) * TENSOR_SECONDS + sum(p.numel() for p in parameters) / PARAMETERS_PER_SECOND
        later = STEP_SECONDS + BACKWARD * self._forward + update
        self._now += later
        self.training_seconds += self._forward + later
        self._forward = 0.0

    @contextmanager
    def training(self) -> Iterator[None]:
        """Return a context for the forward pass of a training step, which its backward pass follows."""
        self._training = True
        try:
            yield
        finally:
            self._training = False

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Return a context in which time stands still, for what only the laboratory does."""
        quiet, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = quiet

    @contextmanager
    def running(self) -> Iterator[None]:
        """Return a context in which the SDK reads this clock and every module's forward pass advances it."""
        if clock.current() is self:  # another hook would count every pass twice
            yield
            return
        handle = register_module_forward_hook(self._on_forward)
        try:
            with clock.using(self):
                yield
        finally:
            handle.remove()

    def _on_forward(self, module: nn.Module, _: object, output: object) -> None:
        # A module that computes something may be the one beside which a model's kernels are registered.
        if self._quiet or module._modules.keys() - {KERNELS} or not isinstance(output, Tensor):
            return
        seconds = forward_seconds(module, output)
        self._now += seconds
        if self._training:
            self._forward += seconds
