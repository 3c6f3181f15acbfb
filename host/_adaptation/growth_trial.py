"""Try on a copy whether an optimizer can take new parameters while it trains."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tamiyo.host._common.random_streams import RandomStreams

log = logging.getLogger(__name__)

Join = Callable[[Optimizer, nn.Parameter, list[Tensor]], None]
"""Lets a parameter join the param group of an optimizer's first parameters."""


def refusal(optimizer: Optimizer, join: Join) -> str:
    """Return why an optimizer's own class cannot take new parameters; empty if it can, or if that cannot be tried.

    An optimizer may keep lists beside its parameters, or one vector for all of them: then its next step raises in the
    loop, or leaves out what joined. So a copy makes a step, takes a new parameter, and makes another. The optimizers
    of torch can all take them, and are not copied.

    Args:
        optimizer: It stays as it is.
        join: As parameters join the optimizer itself.
    """
    if type(optimizer).__module__.startswith("torch."):
        return ""
    kind = type(optimizer).__name__
    known = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    streams = RandomStreams({parameter.device for parameter in known})
    with streams.restored(), torch.no_grad():
        try:
            trial = _copied(optimizer)
            own = [parameter for group in trial.param_groups for parameter in group["params"]]
            _step(trial, own)
        except Exception as error:  # a foreign class, whose step may need a closure, for example
            log.debug("%s is not tried: %s", kind, error)
            return ""
        beside = [parameter for parameter in own if parameter.grad is not None]
        if not beside:
            return ""
        fresh = nn.Parameter(beside[0].detach().clone())
        before = [parameter.detach().clone() for parameter in (fresh, *own)]
        try:
            join(trial, fresh, beside)
            _step(trial, [*own, fresh])
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            log.debug("%s is not tried: %s", kind, error)
            return ""
        except Exception as error:
            return f"with a new parameter its step fails ({type(error).__name__}: {error})"
        moved = [not torch.equal(a, b) for a, b in zip(before, (fresh, *own), strict=True)]
        if any(moved[1:]) and not moved[0]:
            return "its step leaves out parameters that have joined"
    return ""


def _copied(optimizer: Optimizer) -> Any:
    """Return a copy with parameters of its own: `copy.deepcopy` would leave out attributes that a class has added."""
    # A scheduler puts a `step` of its own on the optimizer; hooks are the user's, and ours.
    values = {
        name: value
        for name, value in vars(optimizer).items()
        if not callable(value) and not (name.startswith("_") and "hook" in name)
    }
    made = object.__new__(type(optimizer))
    Optimizer.__setstate__(made, copy.deepcopy(values))
    return made


def _step(optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.grad = torch.rand_like(parameter) * 1e-3 + 1e-4
    step: Any = type(optimizer).step
    if hasattr(step, "hooked"):  # torch has put the calls of hooks, the user's global ones too, around it
        step = step.__wrapped__
    step(optimizer)
