"""Run a user's model beside its training without a trace in it."""

from __future__ import annotations

import copy
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from tamiyo.host._common.random_streams import RandomStreams

_OF_TORCH = frozenset(vars(nn.Module()))
"""What every module has; buffers are restored by name, and the rest a forward pass does not change."""

_CONTAINERS = (dict, OrderedDict, defaultdict, Counter, set, deque)
"""Of exactly these types a shallow copy is cheap and has no effect of its own."""

Restore = Callable[[], Any]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Use eval mode without gradients inside the context; afterwards every module is in its former mode."""
    # Neither `eval` nor `train` is called: a module's own may do more, such as merging its weights.
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Use train mode inside the context; afterwards every module is in its former mode."""
    evaluated = [module for module in model.modules() if not module.training]
    try:
        for module in evaluated:
            module.training = True
        yield
    finally:
        for module in evaluated:
            module.training = False


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode without gradients inside the context, and leave no trace of it.

    Afterwards the random streams (torch's, numpy's, Python's, and generators that modules have of their own), the
    modes, the buffers and the modules' attributes, such as a count of their calls, are as they were. Each such context
    begins at the same state, so that two of them draw the same numbers. Not restored: parameters, objects that are
    nested deeper than a container in an attribute, and what the user's own hooks do.

    Args:
        model: The user's model, attached or not.
    """
    streams = RandomStreams({t.device for t in (*model.parameters(), *model.buffers())})
    # The SDK's own modules account for what their kernels do, wherever they do it.
    modules = [m for m in model.modules() if not type(m).__module__.startswith("tamiyo.host.")]
    restores = [restore for module in modules for restore in _restores(module)]
    try:
        with streams.restored(), evaluating(model):
            yield
    finally:
        with torch.no_grad():
            for restore in restores:
                restore()


def _restores(module: nn.Module) -> Iterator[Restore]:
    """Yield calls that give a module's buffers and attributes the values that they have now."""
    if isinstance(module, LazyModuleMixin):  # its first pass makes its parameters, once and for all
        return
    attributes = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    for value in (*module.buffers(recurse=False), *attributes.values()):
        restore = _restore(value)
        if restore is not None:
            yield restore
    yield partial(_put_back, vars(module), attributes, _OF_TORCH)
    buffers = vars(module).get("_buffers")
    if isinstance(buffers, dict):  # not in a scripted module, whose forward pass cannot assign one
        yield partial(_put_back, buffers, dict(buffers), frozenset())


def _restore(value: Any) -> Restore | None:
    """Return a call that restores the contents of a value; None for one that cannot change in place."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else partial(_put_values_back, value, value.detach().clone())
    if type(value) is list:
        return partial(value.__setitem__, slice(None), list(value))
    if type(value) in _CONTAINERS:
        return partial(_refill, value, copy.copy(value))
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    return None


def _put_back(values: dict[str, Any], saved: dict[str, Any], kept: frozenset[str]) -> None:
    """Make `values` equal to `saved`, except for the names in `kept`."""
    for name in [name for name in values if name not in saved and name not in kept]:
        del values[name]
    for name, value in saved.items():
        if name not in values or values[name] is not value:
            values[name] = value


def _put_values_back(tensor: Tensor, saved: Tensor) -> None:
    # Through `data`, because a new version of the tensor would invalidate a graph that needs it for a backward pass.
    # The version does not show whether it has changed: batch normalisation updates its statistics without a new one.
    tensor.data.copy_(saved)


def _refill(container: Any, saved: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, deque) else container.update)(saved)
