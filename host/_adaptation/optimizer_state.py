"""The state of an optimizer by parameter name, since growth changes torch's own, which is by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tamiyo.host._adaptation.unwrapping import OptimizerChain
from tamiyo.schemas.errors import KernelError

Names = Mapping[Tensor, str]
"""Names of the model's parameters."""


def names_in(model: nn.Module) -> dict[Tensor, str]:
    """Return the name of each of a model's parameters; the first, if it has several."""
    return {parameter: name for name, parameter in model.named_parameters()}


def names_of(chain: OptimizerChain, names: Names) -> list[list[str]]:
    """Return the name of every parameter that the optimizer steps, group by group.

    One that is not the model's, such as a loss weight, is named by its place among those of its group,
    ".group.position", which growth does not change.
    """
    named = []
    for index, group in enumerate(chain.optimizer.param_groups):
        places = {id(p): f".{index}.{place}" for place, p in enumerate(p for p in group["params"] if p not in names)}
        named.append([names.get(p) or places[id(p)] for p in group["params"]])
    return named


def save(chain: OptimizerChain, names: Names) -> dict[str, Any]:
    """Return the optimizer's state as plain dicts, lists, numbers and tensors; the tensors are the optimizer's own."""
    packed = chain.optimizer.state_dict()
    grouped = names_of(chain, names)
    live = dict(zip(_flat(grouped), chain.parameters, strict=True))
    positions = _positions(grouped)
    return {
        "class": type(chain.optimizer).__name__,
        "groups": [
            {key: value for key, value in group.items() if key != "param_names"} | {"params": own}
            for own, group in zip(grouped, packed["param_groups"], strict=True)
        ],
        "state": {name: packed["state"][at] for name, at in positions.items() if at in packed["state"]},
        "shapes": {name: list(parameter.shape) for name, parameter in live.items()},
        "wrappers": [
            {name: dict(state[parameter]) for name, parameter in live.items() if parameter in state}
            for state in chain.wrapper_states()
        ],
    }


def require_loadable(
    chain: OptimizerChain, saved: Mapping[str, Any], names: Names, shapes: Mapping[str, Sequence[int]]
) -> None:
    """Return if `load` can succeed; nothing is changed.

    Args:
        chain: The optimizer to load into.
        saved: The result of `save`.
        names: Names of the model's parameters as they are now.
        shapes: Shapes by name of the parameters that the model has once it is loaded, kernels included.

    Raises:
        KernelError: Class, groups, names or shapes do not match.
    """
    kind = type(chain.optimizer).__name__
    try:
        if saved.get("class", kind) != kind:
            raise KernelError(f"the saved state is of {saved['class']}, the optimizer is {kind}")
        groups, live = saved["groups"], chain.optimizer.param_groups
        if len(groups) != len(live):
            raise KernelError(f"the saved state has {len(groups)} param groups, the optimizer has {len(live)}")
        known = {name: tuple(shape) for name, shape in shapes.items()}
        known |= {
            name: tuple(parameter.shape)
            for name, parameter in zip(_flat(names_of(chain, names)), chain.parameters, strict=True)
            if name.startswith(".")
        }
        trained = {name for group in groups for name in group["params"]}
        missing = sorted(trained - set(known))
        if missing:
            raise KernelError(f"the model has no parameter {', '.join(missing)}: load its state dict first")
        for name, shape in saved.get("shapes", {}).items():
            if tuple(shape) != known[name]:
                raise KernelError(f"parameter {name} has shape {known[name]}, it was saved with {tuple(shape)}")
        own, wrappers = saved["state"], saved.get("wrappers", [])
        if len(wrappers) != len(chain.wrapper_states()):
            raise KernelError(f"the saved state has that of {len(wrappers)} wrappers and does not fit {chain.name}")
        # A state of another class than torch's may have any shape.
        checked = [own, *wrappers] if type(chain.optimizer).__module__.startswith("torch.optim") else wrappers
        for state in checked:
            for name, values in state.items():
                for key, value in values.items():
                    if isinstance(value, Tensor) and not _fits(tuple(value.shape), known[name]):
                        raise KernelError(
                            f"the saved {key} of parameter {name} has shape {tuple(value.shape)}, which does not fit "
                            f"the parameter's {known[name]}"
                        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise KernelError(f"the saved state of the optimizer is malformed: {error!r}") from error


class Snapshot:
    """The param groups and the state of an optimizer and of its wrappers as they are now, to go back to.

    The tensors are not copied: `load` replaces them and changes none.
    """

    def __init__(self, chain: OptimizerChain) -> None:
        """Record groups and states."""
        optimizer = chain.optimizer
        self._optimizer = optimizer
        self._owned = optimizer.param_groups, optimizer.state
        self._groups = [(group, dict(group), list(group["params"])) for group in chain.all_groups()]
        self._states = [(state, dict(state)) for state in (optimizer.state, *chain.wrapper_states())]

    def restore(self) -> None:
        """Go back."""
        for group, values, parameters in self._groups:
            group.clear()
            group.update(values)
            group["params"][:] = parameters
        for state, entries in self._states:
            state.clear()
            state.update(entries)
        self._optimizer.param_groups, self._optimizer.state = self._owned


def load(chain: OptimizerChain, saved: Mapping[str, Any], model: nn.Module) -> None:
    """Load the result of `save`; parameters join their saved param groups.

    Groups and state stay the same objects, which wrappers share. Call `require_loadable` first. An error of torch
    leaves the optimizer changed in part: `Snapshot` goes back.

    Args:
        chain: The optimizer.
        saved: The result of `save`; its tensors are copied.
        model: Has loaded its own state, kernels included.
    """
    optimizer, names = chain.optimizer, names_in(model)
    grouped = names_of(chain, names)
    parameters: dict[str, Any] = dict(zip(_flat(grouped), chain.parameters, strict=True))
    parameters |= dict(model.named_parameters())
    groups, state = optimizer.param_groups, optimizer.state
    entries = [list(entry["params"]) for entry in saved["groups"]]
    positions = _positions(entries)
    packed = []
    for index, (own, entry) in enumerate(zip(entries, saved["groups"], strict=True)):
        labels = dict(zip(grouped[index], groups[index].get("param_names", ()), strict=False))
        for group in chain.groups_beside(index):
            group["params"][:] = [parameters[name] for name in own]
        options = {key: value for key, value in groups[index].items() if key != "params"} | dict(entry)
        if "param_names" in options:
            options["param_names"] = [labels.get(name, name) for name in own]
        packed.append(options | {"params": [positions[name] for name in own]})
    optimizer.load_state_dict({"state": {positions[n]: s for n, s in saved["state"].items()}, "param_groups": packed})
    for group, loaded in zip(groups, optimizer.param_groups, strict=True):
        group.update(loaded)
    given = {id(value) for values in saved["state"].values() for value in values.values()}
    fresh = {
        parameter: {key: value.clone() if id(value) in given else value for key, value in values.items()}
        for parameter, values in optimizer.state.items()
    }
    state.clear()
    state.update(fresh)
    optimizer.param_groups, optimizer.state = groups, state
    for kept, entry in zip(chain.wrapper_states(), saved.get("wrappers", ()), strict=False):
        for parameter in [key for key in kept if isinstance(key, Tensor)]:
            del kept[parameter]
        for name, values in entry.items():
            target = parameters[name]
            kept[target] = {
                k: v.to(target.device, copy=True) if isinstance(v, Tensor) else v for k, v in values.items()
            }


def _fits(shape: tuple[int, ...], parameter: tuple[int, ...]) -> bool:
    """Return whether a tensor is one number, as large as the parameter, or one of its factors, as in Adafactor."""
    factor = len(shape) == len(parameter) and all(own in (1, full) for own, full in zip(shape, parameter, strict=True))
    return shape == () or shape == (1,) or factor


def _flat(grouped: list[list[str]]) -> list[str]:
    return [name for group in grouped for name in group]


def _positions(grouped: list[list[str]]) -> dict[str, int]:
    """Return the position of each name in the list of all; the first, where a parameter is in two groups."""
    positions: dict[str, int] = {}
    for position, name in enumerate(_flat(grouped)):
        positions.setdefault(name, position)
    return positions
