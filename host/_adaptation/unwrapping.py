"""Find the torch optimizers that step a model's parameters, inside whatever wraps them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tamiyo.schemas.errors import ConfigurationError

_INNER = ("optimizer", "base_optimizer", "_optimizer", "optim")
"""Where wrappers that have no `__dict__` keep their optimizer."""
_EXPECTED = "attach(model, optimizer) takes the torch.optim.Optimizer of the model's parameters, or a list of them"


@dataclass(frozen=True, slots=True)
class OptimizerChain:
    """A torch optimizer that steps parameters, and the wrappers through which the loop steps it, outermost first."""

    optimizer: Optimizer
    wrappers: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """Classes from the outermost wrapper to the optimizer, such as "Lookahead > Adam"."""
        return " > ".join(type(each).__name__ for each in (*self.wrappers, self.optimizer))

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that the optimizer steps, group by group."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def groups_beside(self, index: int) -> list[dict[str, Any]]:
        """Return the optimizer's group, and those of wrappers that list the same parameters in a group of their own."""
        own = self.optimizer.param_groups[index]
        found, members = [own], {id(parameter) for parameter in own["params"]}
        for wrapper in self.wrappers:
            for group in getattr(wrapper, "param_groups", ()):
                distinct = all(group is not each and group["params"] is not each["params"] for each in found)
                if distinct and any(id(parameter) in members for parameter in group["params"]):
                    found.append(group)
        return found

    def all_groups(self) -> list[dict[str, Any]]:
        """Return every param group of the optimizer and of its wrappers, once."""
        groups = {id(group): group for each in (self.optimizer, *self.wrappers) for group in _groups(each)}
        return list(groups.values())

    def wrapper_states(self) -> list[MutableMapping[Any, Any]]:
        """Return the states by parameter that wrappers keep of their own, such as Lookahead's slow weights."""
        states = [getattr(wrapper, "state", None) for wrapper in self.wrappers]
        own = {id(s): s for s in states if isinstance(s, MutableMapping) and s is not self.optimizer.state}
        return list(own.values())


def unwrap(optimizers: object, model: nn.Module | None = None) -> tuple[OptimizerChain, ...]:
    """Return the torch optimizers that step the model's parameters.

    A wrapper is any object with `param_groups`, `step` and an optimizer, or several, among its attributes: that of
    accelerate, Lightning, Lookahead, SAM, and others.

    Args:
        optimizers: An optimizer, a wrapper of one, or a list or tuple of them.
        model: The model that they train; None: their parameters are not compared with any.

    Raises:
        ConfigurationError: One of them is no optimizer, has no step hooks, or steps none of the model's parameters;
            the message names its class and what to pass instead.
    """
    given = list(optimizers) if isinstance(optimizers, list | tuple) else [optimizers]
    if not given:
        raise ConfigurationError(f"got an empty list: {_EXPECTED}")
    members = None if model is None else {id(parameter): parameter for parameter in model.parameters()}
    chains: dict[int, OptimizerChain] = {}
    for each in given:
        if not _is_optimizer(each):
            raise ConfigurationError(f"{_reason(each)}: {_EXPECTED}")
        for chain in _require_members(list(_chains(each, ())), members):
            chains.setdefault(id(chain.optimizer), _require_hooks(chain))
    return tuple(chains.values())


def _chains(optimizer: Any, outer: tuple[Any, ...]) -> Iterator[OptimizerChain]:
    """Yield the chain to every innermost optimizer."""
    inner = [each for each in _inside(optimizer) if all(each is not wrapper for wrapper in (*outer, optimizer))]
    if not inner:
        yield OptimizerChain(optimizer, outer)
    for each in inner:
        yield from _chains(each, (*outer, optimizer))


def _inside(optimizer: Any) -> list[Any]:
    """Return the optimizers among an object's attributes, or in lists and dicts of them."""
    found: dict[int, Any] = {}
    attributes = [*getattr(optimizer, "__dict__", {}).values(), *(getattr(optimizer, name, None) for name in _INNER)]
    for value in attributes:
        for each in _entries(value):
            if _is_optimizer(each):
                found[id(each)] = each
    return list(found.values())


def _entries(value: Any) -> Iterable[Any]:
    """Return the entries of a list or dict, or the value itself."""
    kind = type(value)  # isinstance would follow a weak reference, perhaps to an object that is gone
    if issubclass(kind, Mapping):
        return list(value.values())
    return value if issubclass(kind, list | tuple) else (value,)


def _is_optimizer(value: object) -> bool:
    if issubclass(type(value), type | nn.Module | Tensor):
        return False
    try:
        return callable(getattr(value, "step", None)) and isinstance(getattr(value, "param_groups", None), list | tuple)
    except Exception:  # a property of a foreign object, or a weak reference to one that is gone
        return False


def _groups(optimizer: Any) -> Sequence[dict[str, Any]]:
    groups: Sequence[dict[str, Any]] = getattr(optimizer, "param_groups", ())
    return groups


def _require_members(chains: list[OptimizerChain], members: Mapping[int, Tensor] | None) -> list[OptimizerChain]:
    """Return the chains that step parameters of the model. Raises ConfigurationError if none does, or by copies."""
    if members is None:
        return chains
    for chain in chains:
        stepped = {id(parameter) for parameter in chain.parameters}
        # Copies in full precision, of parameters in half precision that the optimizer does not step themselves.
        half = [p for p in members.values() if p.requires_grad and p.dtype in (torch.half, torch.bfloat16)]
        shapes = {parameter.shape for parameter in half if id(parameter) not in stepped}
        foreign = [p for p in chain.parameters if id(p) not in members]
        if any(parameter.dtype is torch.float32 and parameter.shape in shapes for parameter in foreign):
            raise ConfigurationError(
                f"{chain.name} steps float32 copies of the model's half-precision parameters, which kernels cannot "
                "join: keep the model in float32, use torch.autocast, and pass the plain torch optimizer of "
                "model.parameters()"
            )
    found = [chain for chain in chains if any(id(parameter) in members for parameter in chain.parameters)]
    if not found:
        name, count = chains[0].name, sum(len(chain.parameters) for chain in chains)
        raise ConfigurationError(
            f"none of the {count} parameters that {name} steps is the model's: it was made for another model, for "
            "copies of the parameters, or before they were replaced; make it from model.parameters() and pass it again"
        )
    return found


def _require_hooks(chain: OptimizerChain) -> OptimizerChain:
    """Return the chain. Raises ConfigurationError if its optimizer cannot report its steps."""
    kind = type(chain.optimizer).__name__
    try:
        chain.optimizer.register_step_post_hook(lambda *_: None).remove()
    except AttributeError as error:
        raise ConfigurationError(
            f"{chain.name}: {kind} has no step hooks, as a torch.optim.Optimizer has: pass the optimizer that it "
            "steps, derive it from torch.optim.Optimizer, or call super().__init__ in it"
        ) from error
    return chain


def _reason(value: object) -> str:
    """Return why something is no optimizer."""
    kind = type(value).__name__
    if value is None:
        return "got None"
    if isinstance(value, type):
        return f"{value.__name__} is a class: make an optimizer of it first"
    if isinstance(value, Mapping):
        return f"a {kind} is no optimizer: pass a list of its optimizers"
    if isinstance(value, list | tuple):
        return f"the list contains a {kind}: pass one flat list"
    if isinstance(value, nn.Module):
        return f"{kind} is a module"
    if hasattr(value, "get_last_lr"):
        return f"{kind} is a learning rate scheduler: pass its optimizer"
    if hasattr(value, "unscale_"):
        return f"{kind} is a gradient scaler: pass the optimizer that it steps"
    return f"{kind} is no optimizer: it has no param_groups, or no step"
