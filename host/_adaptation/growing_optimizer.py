"""Add, remove and slow down the parameters of a training loop's optimizers while training runs."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tamiyo.host._adaptation import growth_trial, optimizer_state
from tamiyo.host._adaptation.optimizer_state import Snapshot, names_in
from tamiyo.host._adaptation.step_monitor import StepMonitor
from tamiyo.host._adaptation.step_scaler import StepScaler
from tamiyo.host._adaptation.unwrapping import OptimizerChain, unwrap
from tamiyo.schemas.errors import AdaptationRefused, ConfigurationError, KernelError

log = logging.getLogger(__name__)

_CANNOT_GROW = {
    "LBFGS": "it keeps one history of all parameters",
    "Muon": "it takes matrices only, and kernels have biases",
    "SparseAdam": "it takes sparse gradients only",
    "ZeroRedundancyOptimizer": "it has divided the parameters among the ranks",
}
"""Classes that cannot take new parameters during training, and why."""

_WRAPPER_STATE: dict[str, Callable[[Tensor], Tensor] | None] = {
    # Lookahead: the slow weights, and the momentum at the last exchange.
    "slow_params": torch.clone,
    "slow_buffer": torch.clone,
    "cached_params": torch.clone,
    "slow_momentum": torch.zeros_like,
    "cached_mom": torch.zeros_like,
    # SAM and SWA make theirs by themselves.
    "old_p": None,
    "swa_buffer": None,
}
"""State that wrappers keep by parameter: what it is for a new parameter."""


class GrowingOptimizer:
    """Grows and shrinks the optimizers of a training loop in place: one, or several that share a model.

    A kernel's parameters join the param group of the layer they sit at, so its hyper-parameters and every
    learning rate scheduler apply to them, and the number of groups, which schedulers count on, never changes.
    Other state stays as it is.

    The learning rate of a single layer is scaled by shortening the steps that the optimizer makes (`StepScaler`).
    `param_groups` do not show the scale; `learning_rate` does.
    """

    def __init__(self, optimizers: object, model: nn.Module | None = None) -> None:
        """Hook into the optimizers.

        Args:
            optimizers: A torch optimizer, a wrapper of one, or a list or tuple of them.
            model: The model that they train; None: their parameters are not compared with any.

        Raises:
            ConfigurationError: One is no optimizer, or steps none of the model's parameters, or none of them can take
                new parameters.
        """
        self._chains = unwrap(optimizers, model)
        self._obstacles = [_obstacle(chain) or _tried(chain) for chain in self._chains]
        if all(self._obstacles):
            raise ConfigurationError(f"{self._obstacles[0]}: use Adam, AdamW or SGD")
        self.optimizers: tuple[Optimizer, ...] = tuple(chain.optimizer for chain in self._chains)
        """The torch optimizers that step the model's parameters, without wrappers."""
        self._scalers = [StepScaler(optimizer) for optimizer in self.optimizers]
        self._monitors = [StepMonitor(chain) for chain in self._chains]

    def refusal(self, beside: Iterable[Tensor]) -> AdaptationRefused | None:
        """Return why a kernel at a layer would not be trained; None if it would.

        Args:
            beside: The layer's own parameters.
        """
        found = self._place(beside)
        return found if isinstance(found, AdaptationRefused) else None

    def add(self, kernel: nn.Module, *, beside: Iterable[Tensor], name: str = "kernel") -> None:
        """Train a kernel's parameters, in the param group of its layer.

        Args:
            kernel: The module whose parameters are added; those trained already stay where they are.
            beside: The layer's own parameters.
            name: Prefix of the parameters' names, for optimizers that keep names.

        Raises:
            AdaptationRefused: It would not be trained, see `refusal`; nothing has changed.
        """
        beside = list(beside)
        place = self._place(beside)
        if isinstance(place, AdaptationRefused):
            raise place
        chain, index = self._chains[place[0]], place[1]
        known = self._places()
        fresh = [(f"{name}.{suffix}", p) for suffix, p in kernel.named_parameters() if p not in known]
        for group in chain.groups_beside(index):
            for full_name, parameter in fresh:
                group["params"].append(parameter)
                if "param_names" in group:
                    group["param_names"].append(full_name)
        for _, parameter in fresh:
            _start_state(chain, parameter, beside)

    def trains(self, parameter: nn.Parameter) -> bool:
        """Return whether a parameter is in a param group."""
        return parameter in self._places()

    def drop(self, parameters: Iterable[Tensor]) -> int:
        """Remove parameters with their state and gradient; return how many were trained. No other changes."""
        leaving = {id(parameter): parameter for parameter in parameters}
        count = 0
        for chain, scaler in zip(self._chains, self._scalers, strict=True):
            count += sum(id(parameter) in leaving for parameter in chain.parameters)
            for group in chain.all_groups():
                stay = [index for index, p in enumerate(group["params"]) if id(p) not in leaving]
                for key in ("params", "param_names"):
                    if key in group and len(stay) < len(group[key]):
                        group[key][:] = [group[key][index] for index in stay]
            for state in (chain.optimizer.state, *chain.wrapper_states()):
                for parameter in leaving.values():
                    state.pop(parameter, None)
            scaler.drop(leaving.values())
        for parameter in leaving.values():
            parameter.grad = None
        return count

    def forget(self, parameters: Iterable[Tensor]) -> None:
        """Start the state of parameters anew, whose values were replaced; they continue to be trained."""
        places = self._places()
        for parameter in parameters:
            if parameter in places:
                chain = self._chains[places[parameter][0]]
                _start_state(chain, parameter, [parameter])

    def scale_learning_rate(self, parameters: Iterable[Tensor], factor: float) -> float:
        """Multiply the learning rate of some parameters by a factor.

        Args:
            parameters: Those that are not trained are ignored.
            factor: In (0, 1].

        Returns:
            The smallest scale among them, in (0, 1].

        Raises:
            ConfigurationError: The factor is out of range.
            AdaptationRefused: An optimizer's steps are not proportional to lr, it no longer steps, or none of the
                parameters is trained; nothing has changed.
        """
        if not 0.0 < factor <= 1.0:
            raise ConfigurationError(f"a learning rate factor must be in (0, 1], got {factor}")
        places = self._places()
        trained = [(p, places[p][0]) for p in parameters if p in places and p.requires_grad]
        if not trained:
            raise AdaptationRefused("untrained_layer", "no optimizer trains these parameters")
        for number in {number for _, number in trained}:
            obstacle = self._scalers[number].obstacle
            if obstacle:
                raise AdaptationRefused("not_scalable", f"{obstacle}: the rate of a single layer cannot be scaled")
            if self._monitors[number].stalled:
                raise AdaptationRefused("optimizer_replaced", self._monitors[number].reason)
        for parameter, number in trained:
            self._scalers[number].scale(parameter, factor)
        return min(self._scalers[number].scales[parameter] for parameter, number in trained)

    def learning_rate(self, parameter: Tensor) -> float:
        """Return a parameter's learning rate: its group's lr times its scale. Raises KernelError if untrained."""
        place = self._places().get(parameter)
        if place is None:
            raise KernelError("no optimizer trains this parameter")
        number, index = place
        return float(self.optimizers[number].param_groups[index]["lr"]) * self._scalers[number].scales.get(
            parameter, 1.0
        )

    def complete_step(self) -> bool:
        """Complete a training step: an optimizer that the loop no longer steps is reported, once.

        Returns:
            Whether an optimizer has stepped since the last call.
        """
        stepped = False
        for monitor in self._monitors:
            stepped = monitor.complete() or stepped
        for scaler in self._scalers:
            if scaler.scales:
                scaler.complete()
        return stepped

    def close(self) -> None:
        """Remove the hooks: every rate is its group's lr again, grown parameters stay."""
        for scaler, monitor in zip(self._scalers, self._monitors, strict=True):
            scaler.close()
            monitor.close()

    def copied(self, memo: dict[int, Any]) -> GrowingOptimizer:
        """Return a copy of the optimizers with their state and scales, and without the user's hooks and wrappers.

        Args:
            memo: That of the `copy.deepcopy` of the model: the copy trains the parameters which that has made.

        Raises:
            KernelError: A wrapper has a state of its own, so that its optimizer alone would train differently.
        """
        for chain in self._chains:
            if chain.wrapper_states():
                raise KernelError(f"{chain.name} cannot be copied: a wrapper takes part in its steps")
        twin = GrowingOptimizer([copy.deepcopy(optimizer, memo) for optimizer in self.optimizers])
        for scaler, own in zip(self._scalers, twin._scalers, strict=True):
            own.replace({copy.deepcopy(parameter, memo): scale for parameter, scale in scaler.scales.items()})
        return twin

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """Return the optimizers' state by parameter name: plain dicts, lists, numbers and tensors.

        torch's own state_dict is by position, which growth changes.

        Args:
            model: The model that they train. Parameters that are not its own are saved by their place.
        """
        names = names_in(model)
        places = self._places()
        return {
            "optimizers": [optimizer_state.save(chain, names) for chain in self._chains],
            "scales": {
                names[parameter]: scale
                for scaler in self._scalers
                for parameter, scale in scaler.scales.items()
                if parameter in names and parameter in places
            },
        }

    def require_loadable(
        self, model: nn.Module, saved: Mapping[str, Any], shapes: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        """Return if `load_state_dict` can succeed; nothing is changed.

        Args:
            model: The model that the optimizers train.
            saved: The result of `state_dict`.
            shapes: Shapes by name of the parameters that the model will have, if it has not loaded its state yet.

        Raises:
            KernelError: Optimizers, groups, names or shapes do not match.
        """
        names = names_in(model)
        shapes = shapes if shapes is not None else {name: tuple(p.shape) for p, name in names.items()}
        entries = _entries(saved)
        if len(entries) != len(self._chains):
            raise KernelError(f"the saved state has {len(entries)} optimizers, the loop has {len(self._chains)}")
        for chain, entry in zip(self._chains, entries, strict=True):
            optimizer_state.require_loadable(chain, entry, names, shapes)
        trained = {name for entry in entries for group in entry["groups"] for name in group["params"]}
        scales = saved.get("scales")
        if not isinstance(scales, Mapping) or not all(
            name in trained and isinstance(scale, float | int) and 0.0 < scale <= 1.0 for name, scale in scales.items()
        ):
            raise KernelError(f"the saved learning rate scales are malformed: {scales!r}")

    def load_state_dict(self, model: nn.Module, saved: Mapping[str, Any]) -> None:
        """Resume; kernels join their saved param groups.

        Args:
            model: Must have loaded its own state dict, kernels included.
            saved: The result of `state_dict`; its tensors are copied.

        Raises:
            KernelError: Optimizers, groups, names or shapes do not match; nothing has changed.
        """
        self.require_loadable(model, saved)
        snapshots = [Snapshot(chain) for chain in self._chains]
        try:
            for chain, entry in zip(self._chains, _entries(saved), strict=True):
                optimizer_state.load(chain, entry, model)
        except Exception as error:
            for snapshot in snapshots:
                snapshot.restore()
            raise KernelError(f"the optimizer cannot load the saved state: {type(error).__name__}: {error}") from error
        parameters, places = dict(model.named_parameters()), self._places()
        for number, scaler in enumerate(self._scalers):
            scales = {parameters[name]: float(scale) for name, scale in saved["scales"].items()}
            scaler.replace({p: scale for p, scale in scales.items() if places[p][0] == number})

    def _places(self) -> dict[Tensor, tuple[int, int]]:
        """Return the optimizer's number and the group's index of each parameter; the first, if it has several."""
        places: dict[Tensor, tuple[int, int]] = {}
        for number, optimizer in enumerate(self.optimizers):
            for index, group in enumerate(optimizer.param_groups):
                for parameter in group["params"]:
                    places.setdefault(parameter, (number, index))
        return places

    def _place(self, beside: Iterable[Tensor]) -> tuple[int, int] | AdaptationRefused:
        """Return where a kernel joins, or why it cannot."""
        members = [parameter for parameter in beside if parameter.requires_grad]
        refusal = AdaptationRefused(
            "untrained_layer",
            "no optimizer trains this layer: its parameters are frozen, or in no param group",
        )
        for number, chain in enumerate(self._chains):
            for index, group in enumerate(chain.optimizer.param_groups):
                inside = set(map(id, group["params"]))
                own = [p for p in members if id(p) in inside]
                if not own:
                    continue
                obstacle = self._obstacles[number] or _group_obstacle(chain, group, own)
                if obstacle:
                    refusal = AdaptationRefused("optimizer_cannot_grow", obstacle)
                elif self._monitors[number].stalled:
                    refusal = AdaptationRefused("optimizer_replaced", self._monitors[number].reason)
                else:
                    return number, index
        return refusal


def _entries(saved: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the saved state of each optimizer. Raises KernelError if it is not by optimizer."""
    entries = saved.get("optimizers") if isinstance(saved, Mapping) else None
    if not isinstance(entries, list | tuple):
        raise KernelError("the saved state of the optimizers is malformed: it is not what state_dict returned")
    return entries


def _obstacle(chain: OptimizerChain) -> str:
    """Return why an optimizer cannot take new parameters; empty if it can."""
    for each in (*chain.wrappers, chain.optimizer):
        for kind in type(each).__mro__:
            # Implementations of Muon that also train vectors mark the groups of matrices.
            marked = kind.__name__ == "Muon" and any("use_muon" in group for group in chain.optimizer.param_groups)
            if kind.__name__ in _CANNOT_GROW and not marked:
                reason = _CANNOT_GROW[kind.__name__]
                return f"{chain.name} cannot take new parameters during training: {reason}"
    if any(group.get("differentiable") for group in chain.optimizer.param_groups):
        return f"{chain.name} cannot take new parameters during training: it records its steps for autograd"
    unknown = {key for state in chain.wrapper_states() for p in chain.parameters for key in state.get(p, ())}
    return _unknown_state(chain, unknown)


def _tried(chain: OptimizerChain) -> str:
    """Return why an optimizer of a class that is not torch's cannot take new parameters; empty if it can."""

    def join(trial: torch.optim.Optimizer, fresh: nn.Parameter, beside: list[Tensor]) -> None:
        copied = OptimizerChain(trial)
        trial.param_groups[0]["params"].append(fresh)
        if "param_names" in trial.param_groups[0]:
            trial.param_groups[0]["param_names"].append("fresh")
        _start_state(copied, fresh, beside)

    reason = growth_trial.refusal(chain.optimizer, join)
    return f"{chain.name} cannot take new parameters during training: {reason}" if reason else ""


def _group_obstacle(chain: OptimizerChain, group: Mapping[str, Any], beside: Iterable[Tensor]) -> str:
    """Return why kernels cannot join a param group; empty if they can."""
    if group.get("use_muon"):
        return f"{chain.name} takes only matrices into this param group, and kernels have biases"
    return _unknown_state(chain, {key for state in chain.wrapper_states() for p in beside for key in state.get(p, ())})


def _unknown_state(chain: OptimizerChain, keys: set[Any]) -> str:
    """Return why wrappers cannot go on with parameters that lack the keys of their state."""
    unknown = sorted(str(key) for key in keys if key not in _WRAPPER_STATE)
    if not unknown:
        return ""
    return (
        f"{chain.name} cannot take new parameters during training: a wrapper keeps {', '.join(unknown)} for every "
        "parameter, and how it starts for a new one is not known"
    )


def _fused_momentum(optimizer: torch.optim.SGD, parameter: Tensor) -> Tensor | None:
    """Return the momentum with which a parameter joins a fused SGD; None where torch starts it by itself.

    The fused step takes either all momenta of a param group, or none.
    """
    for group in optimizer.param_groups:
        if group.get("fused") and group["momentum"] and any(parameter is each for each in group["params"]):
            others = (optimizer.state.get(each, {}) for each in group["params"] if each is not parameter)
            if any(isinstance(state.get("momentum_buffer"), Tensor) for state in others):
                return torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return None


def _start_state(chain: OptimizerChain, parameter: Tensor, beside: Iterable[Tensor]) -> None:
    """Give a new parameter the state that was made when the optimizer, or a wrapper, was made.

    Args:
        chain: The optimizer.
        parameter: The new parameter; most optimizers make its state at its first step.
        beside: Parameters of the same layer, which show what state wrappers keep.
    """
    optimizer, made = chain.optimizer, None
    if optimizer.state:
        arguments = inspect.signature(type(optimizer)).parameters
        try:
            options = {key: value for key, value in optimizer.defaults.items() if key in arguments}
            made = type(optimizer)([parameter], **options).state.get(parameter)
        except Exception as error:  # a foreign class, which cannot be made from its defaults
            log.debug("%s makes no state in advance: %s", chain.name, error)
    optimizer.state.pop(parameter, None)
    if made:
        optimizer.state[parameter] = made
    elif isinstance(optimizer, torch.optim.SGD):
        momentum = _fused_momentum(optimizer, parameter)
        if momentum is not None:
            optimizer.state[parameter] = {"momentum_buffer": momentum}
    with torch.no_grad():
        for state in chain.wrapper_states():
            keys = {key for each in beside for key in state.get(each, ())}
            state.pop(parameter, None)
            entry = {key: start(parameter.detach()) for key in keys if (start := _WRAPPER_STATE.get(key)) is not None}
            if entry:
                state[parameter] = entry
