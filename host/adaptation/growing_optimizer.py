"""The optimiser's side of growth: parameters that come, go, or slow down while training runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tamiyo.schemas.errors import ConfigurationError, KernelError

# LBFGS keeps one flat history of all parameters, Muon takes matrices only: neither can grow a convolution.
_CANNOT_GROW = ("LBFGS", "Muon")
# Rprop's step is not proportional to lr.
_CANNOT_SCALE = ("Rprop",)


class GrowingOptimizer:
    """Grows and shrinks a torch optimizer (Adam, AdamW, SGD and others whose step is proportional to lr) in place.

    A kernel's parameters join the param group of the layer they sit at, so its hyper-parameters and every
    learning rate scheduler apply to them, and the number of groups, which schedulers count on, never changes.

    A layer's own learning rate is scaled by shortening the step that the optimiser has made: p <- old + scale x
    (new - old). For a step proportional to lr that is exactly the smaller lr (weight decay included, as torch
    ties it to lr too), whatever a scheduler does with the group's lr. It costs a copy of the scaled parameters a
    step; `param_groups` do not show it, `learning_rate` does.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Raises ConfigurationError for an optimiser that cannot grow (LBFGS, Muon)."""
        kind = type(optimizer).__name__
        if kind in _CANNOT_GROW:
            raise ConfigurationError(f"{kind} cannot take new parameters while it runs: use Adam, AdamW or SGD")
        self.optimizer = optimizer
        self._scales: dict[nn.Parameter, float] = {}
        self._before: dict[nn.Parameter, Tensor] = {}
        self._hooks = [
            optimizer.register_step_pre_hook(self._remember),
            optimizer.register_step_post_hook(self._shorten),
        ]

    def add(self, kernel: nn.Module, *, beside: Iterable[nn.Parameter], name: str = "kernel") -> int:
        """Train a kernel's parameters in the group of the layer's (`beside`); returns the group's index.

        The first group, where the layer itself is not trained. Parameters already there stay where they are.
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

    def drop(self, parameters: Iterable[nn.Parameter]) -> int:
        """Take parameters out, with their state and gradient; returns how many there were. Others keep theirs."""
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
        """Drop the optimiser's state of these (their values were replaced), and keep training them."""
        for parameter in parameters:
            self.optimizer.state.pop(parameter, None)

    def scale_learning_rate(self, parameters: Iterable[nn.Parameter], factor: float) -> float:
        """Multiply the learning rate of these parameters by `factor` (0..1]; returns the smallest scale among them.

        Raises ConfigurationError for a factor out of range or an optimiser whose step is not proportional to lr,
        KernelError where none of the parameters is trained.
        """
        kind = type(self.optimizer).__name__
        if not 0.0 < factor <= 1.0:
            raise ConfigurationError(f"a learning rate is scaled by a factor in (0, 1], got {factor}")
        if kind in _CANNOT_SCALE:
            raise ConfigurationError(f"{kind} does not step in proportion to lr: its rate cannot be scaled a layer")
        known = self._places()
        trained = [p for p in parameters if p in known]
        if not trained:
            raise KernelError("none of these parameters is trained by the optimiser")
        for parameter in trained:
            self._scales[parameter] = self._scales.get(parameter, 1.0) * factor
        return min(self._scales[p] for p in trained)

    def learning_rate(self, parameter: nn.Parameter) -> float:
        """The rate this parameter learns at now: its group's lr times its scale. Raises KernelError if untrained."""
        place = self._places().get(parameter)
        if place is None:
            raise KernelError("the optimiser does not train this parameter")
        return float(self.optimizer.param_groups[place]["lr"]) * self._scales.get(parameter, 1.0)

    def close(self) -> None:
        """Take the hooks off: scaled rates go back to their groups', grown parameters stay."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._before.clear()

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """The optimiser's state by parameter name; torch's own is by position, which growth does not keep.

        Plain dicts, lists, numbers and tensors. Raises KernelError where a trained parameter is not the model's.
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
        """Resume: `model` has loaded its own state dict (kernels included) before; kernels join their saved groups.

        Raises KernelError where groups or names do not match the model's.
        """
        parameters = dict(model.named_parameters())
        groups, state = saved["groups"], saved["state"]
        if len(groups) != len(self.optimizer.param_groups):
            raise KernelError(f"saved with {len(groups)} param groups, there are {len(self.optimizer.param_groups)}")
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
        return {p: index for index, group in enumerate(self.optimizer.param_groups) for p in group["params"]}

    def _remember(self, *_: Any) -> None:
        self._before = {p: p.detach().clone() for p in self._scales}

    @torch.no_grad()
    def _shorten(self, *_: Any) -> None:
        for parameter, before in self._before.items():
            parameter.lerp_(before, 1.0 - self._scales[parameter])
        self._before = {}
