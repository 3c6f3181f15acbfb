"""Copy a user's model, whatever it keeps in its attributes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from tamiyo.schemas.errors import KernelError


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of a model.

    Activations that a forward pass left in an attribute are copied without their graph, which torch refuses to copy.

    Args:
        model: It stays as it is.
        memo: What copy.deepcopy must take instead of a copy, by id; it learns the rest.

    Raises:
        KernelError: An attribute cannot be copied; the message names it.
    """
    memo = {} if memo is None else memo
    for _, _, value in _attributes(model):
        for tensor in _tensors(value):
            if tensor.grad_fn is not None:
                memo[id(tensor)] = tensor.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # a user's attribute may be anything, and raise anything
        culprit = next((f" (attribute {name!r} of module {path!r})" for path, name in _culprits(model)), "")
        raise KernelError(f"the model cannot be copied{culprit}: {type(error).__name__}: {error}") from error


def _attributes(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """Yield (module's name, attribute, value) of all attributes but parameters, buffers and modules."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_modules"):
                yield path, name, value


def _tensors(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Yield the tensors in a value and in the containers in it."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each, depth - 1)
    elif depth and isinstance(value, list | tuple | set):
        for each in value:
            yield from _tensors(each, depth - 1)


def _culprits(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the attributes that cannot be copied alone."""
    modules = {id(module): module for module in model.modules()}
    for path, name, value in _attributes(model):
        try:
            copy.deepcopy(value, dict(modules))
        except Exception:  # the error is the message's
            yield path, name
