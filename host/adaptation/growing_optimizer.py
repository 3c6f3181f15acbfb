"""Add, remove and slow down an optimiser's parameters while training runs."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tamiyo.schemas.errors import ConfigurationError, KernelError

# LBFGS keeps one flat history of all parameters; Muon accepts matrices only, so no convolution kernel.
_CANNOT_GROW = ("LBFGS", "Muon")
# Rprop's step is not proportional to lr.
_CANNOT_SCALE = ("Rprop",)


class GrowingOptimizer:
    """Grows and shrinks a torch optimizer (Adam, AdamW, SGD and others whose step is proportional to lr) in place.

    A kernel's parameters join the param group of the layer they sit at, so its hyper-parameters and every
    learning rate scheduler apply to them, and the number of groups, which schedulers count on, never changes.

    The learning rate of a single layer is scaled by shortening the step that the optimiser made:
    p <- old + scale * (new - old). If steps are proportional to lr, this equals a smaller lr (weight decay included,
    since torch multiplies it by lr), whatever a scheduler does with the group's lr. It costs a copy of the scaled
    parameters per step. `param_groups` do not show the scale; `learning_rate` does.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Hook into `optimizer`. Raises ConfigurationError if it cannot grow (LBFGS, Muon)."""
        kind = type(optimizer).__name__
        if kind in _CANNOT_GROW:
            raise ConfigurationError(f"{kind} cannot take new parameters during training: use Adam, AdamW or SGD")
        self.optimizer = optimizer
        self._scales: dict[nn.Parameter, float] = {}
        self._before: dict[nn.Parameter, Tensor] = {}
        self._hooks = [
            optimizer.register_step_pre_hook(self._remember),
            optimizer.register_step_post_hook(self._shorten),
        ]

    def add(self, kernel: nn.Module, *, beside: Iterable[nn.Parameter], name: str = "kernel") -> int:
        """Train a kernel's parameters, in the param group of its layer.

        Args:
            kernel: The module whose parameters are added; those trained already stay where they are.
            beside: The layer's own parameters. If none of them is trained, the first group is used.
            name: Prefix of the parameters' names, for optimisers that keep names.

        Returns:
            The index of the param group.
        """
        known = self._places()
        at = next((known[p] for p in beside if p in known), 0)
        group = self.optimizer.param_groups[at]
        for suffix, parameter in kernel.named_parameters():
            if parameter in known:
                continue
            group["params"].append(parameter)
            if "param_names" in group:
                group["param_names"].append(f"{name}.{suffix}")
        return at

    def trains(self, parameter: nn.Parameter) -> bool:
        """Return whether a parameter is in a param group."""
        return parameter in self._places()

    def drop(self, parameters: Iterable[nn.Parameter]) -> int:
        """Remove parameters with their state and gradient; return how many were trained. No other changes."""
        leaving = {id(p): p for p in parameters}
        count = 0
        for group in self.optimizer.param_groups:
            stay = [index for index, p in enumerate(group["params"]) if id(p) not in leaving]
            count += len(group["params"]) - len(stay)
            for key in ("params", "param_names"):
                if key in group:
                    group[key] = [group[key][index] for index in stay]
        for parameter in leaving.values():
            self.optimizer.state.pop(parameter, None)
            self._scales.pop(parameter, None)
            self._before.pop(parameter, None)
            parameter.grad = None
        return count

    def forget(self, parameters: Iterable[nn.Parameter]) -> None:
        """Drop the optimiser's state of parameters whose values were replaced; they continue to be trained."""
        for parameter in parameters:
            self.optimizer.state.pop(parameter, None)

    def scale_learning_rate(self, parameters: Iterable[nn.Parameter], factor: float) -> float:
        """Multiply the learning rate of some parameters by a factor.

        Args:
            parameters: Those that are not trained are ignored.
            factor: In (0, 1].

        Returns:
            The smallest scale among them, in (0, 1].

        Raises:
            ConfigurationError: The factor is out of range, or the optimiser's step is not proportional to lr (Rprop).
            KernelError: None of the parameters is trained.
        """
        kind = type(self.optimizer).__name__
        if not 0.0 < factor <= 1.0:
            raise ConfigurationError(f"a learning rate factor must be in (0, 1], got {factor}")
        if kind in _CANNOT_SCALE:
            raise ConfigurationError(
                f"the steps of {kind} are not proportional to lr: the rate of a single layer cannot be scaled"
            )
        known = self._places()
        trained = [p for p in parameters if p in known]
        if not trained:
            raise KernelError("none of these parameters is trained by the optimiser")
        for parameter in trained:
            self._scales[parameter] = self._scales.get(parameter, 1.0) * factor
        return min(self._scales[p] for p in trained)

    def learning_rate(self, parameter: nn.Parameter) -> float:
        """Return a parameter's learning rate: its group's lr times its scale. Raises KernelError if untrained."""
        place = self._places().get(parameter)
        if place is None:
            raise KernelError("the optimiser does not train this parameter")
        return float(self.optimizer.param_groups[place]["lr"]) * self._scales.get(parameter, 1.0)

    def close(self) -> None:
        """Remove the hooks: every rate is its group's lr again, grown parameters stay."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._before.clear()

    def copied(self, memo: dict[int, Any]) -> GrowingOptimizer:
        """Return a copy of the optimiser with its state and scales, and without the user's hooks.

        Args:
            memo: That of the `copy.deepcopy` of the model: the copy trains the parameters which that has made.
        """
        twin = GrowingOptimizer(copy.deepcopy(self.optimizer, memo))
        twin._scales = {copy.deepcopy(parameter, memo): scale for parameter, scale in self._scales.items()}
        return twin

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """Return the optimiser's state by parameter name: plain dicts, lists, numbers and tensors.

        torch's own state_dict is by position, which growth changes.

        Args:
            model: The model that holds every trained parameter.

        Raises:
            KernelError: A trained parameter is not the model's.
        """
        name_of = {p: name for name, p in model.named_parameters()}
        packed = self.optimizer.state_dict()
        groups, state = [], {}
        for live, group in zip(self.optimizer.param_groups, packed["param_groups"], strict=True):
            missing = [tuple(p.shape) for p in live["params"] if p not in name_of]
            if missing:
                raise KernelError(f"the optimiser trains parameters that are not the model's, of shapes {missing}")
            own = [name_of[p] for p in live["params"]]
            state.update(
                {n: packed["state"][i] for n, i in zip(own, group["params"], strict=True) if i in packed["state"]}
            )
            groups.append({k: v for k, v in group.items() if k != "param_names"} | {"params": own})
        scales = {name_of[p]: scale for p, scale in self._scales.items()}
        return {"groups": groups, "state": state, "scales": scales}

    def load_state_dict(self, model: nn.Module, saved: dict[str, Any]) -> None:
        """Resume; kernels join their saved param groups.

        Args:
            model: Must have loaded its own state dict, kernels included.
            saved: The result of `state_dict`.

        Raises:
            KernelError: Groups or names do not match.
        """
        parameters = dict(model.named_parameters())
        groups, state = saved["groups"], saved["state"]
        if len(groups) != len(self.optimizer.param_groups):
            raise KernelError(
                f"the saved state has {len(groups)} param groups, the optimiser has {len(self.optimizer.param_groups)}"
            )
        missing = sorted({n for group in groups for n in group["params"]} - set(parameters))
        if missing:
            raise KernelError(f"the model has no parameter {', '.join(missing)}: load its state dict first")
        position: dict[str, int] = {}
        packed_groups = []
        for live, group in zip(self.optimizer.param_groups, groups, strict=True):
            live["params"] = [parameters[name] for name in group["params"]]
            packed = dict(group)
            if "param_names" in live:
                live["param_names"] = packed["param_names"] = list(group["params"])
            for name in group["params"]:
                position[name] = len(position)
            packed_groups.append(packed | {"params": [position[name] for name in group["params"]]})
        self.optimizer.load_state_dict(
            {"state": {position[n]: s for n, s in state.items()}, "param_groups": packed_groups}
        )
        self._scales = {parameters[n]: float(scale) for n, scale in saved["scales"].items()}

    def _places(self) -> dict[nn.Parameter, int]:
        """Return the index of each trained parameter's group."""
        return {p: index for index, group in enumerate(self.optimizer.param_groups) for p in group["params"]}

    def _remember(self, *_: Any) -> None:
        self._before = {p: p.detach().clone() for p in self._scales}

    @torch.no_grad()
    def _shorten(self, *_: Any) -> None:
        for parameter, before in self._before.items():
            parameter.lerp_(before, 1.0 - self._scales[parameter])
        self._before = {}
