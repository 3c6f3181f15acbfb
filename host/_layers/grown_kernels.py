"""The kernels of a model, as its last module: its other parameters and keys stay as they were before anything grew."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import quote

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tamiyo.host._common.undisturbed import evaluating, training, undisturbed
from tamiyo.host._layers.kasmina_layer import KERNELS, KasminaLayer
from tamiyo.host._topology.tracing import Example, call
from tamiyo.schemas.errors import ConfigurationError

log = logging.getLogger(__name__)

Mode = Callable[[nn.Module], AbstractContextManager[None]]
_MODES: tuple[Mode, ...] = (evaluating, training)
_TRIED = 16
"""Modules that are tried: each costs two passes of the model."""
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""Modules that treat every child as one of their own."""


class GrownKernels(nn.Module):
    """Registers the layers that have kernels, so that these are parameters of the model.

    It sits at the module that comes last in the model's order, so the kernels' parameters come after all others: what
    pairs two models' parameters by position, such as an average of the weights, still pairs the same ones. A layer is
    registered only while it has kernels; until then the model has the parameters, buffers and keys of the user's.

    A state dict decides what the model has grown: loading one builds the kernels that it contains, and drops those of
    every layer whose own weights it contains without kernels. A kernel that is there already keeps its parameters.
    """

    def __init__(self, layers: Mapping[str, KasminaLayer]) -> None:
        """Take the layers by their names in the model, dotted."""
        super().__init__()
        self.changes = 0
        """Rises whenever a kernel joins or leaves."""
        self._of_name = dict(layers)
        self._holder: nn.Module | None = None
        self._hook: RemovableHandle | None = None
        self._path = ""
        self._called = False
        self.on_change: Callable[[KasminaLayer], None] | None = None
        """Called with a layer after a kernel has joined it or left it."""
        self.ended = False
        """Whether the run has ended and left its kernels in the model, for another run to take over."""
        for layer in layers.values():
            layer.on_change = self._update

    @property
    def layers(self) -> Mapping[str, KasminaLayer]:
        """All layers that can have kernels, by their names in the model."""
        return self._of_name

    def forward(self, *inputs: Any) -> Any:
        """Return the first input: a module that runs its own children meets this one too, and must not notice it."""
        self._called = True
        return inputs[0] if inputs else None

    def place(self, model: nn.Module, example: Example | None = None) -> None:
        """Register with a model, at a module that runs as before with one more child.

        Args:
            model: The user's.
            example: What the model runs on, to find out whether it does; None: take the first place.

        Raises:
            ConfigurationError: It has the attribute already, or no such module.
        """
        modes: list[Mode] | None = None
        for path, holder in _places(model)[:_TRIED]:
            if getattr(holder, KERNELS, None) is not None:
                raise ConfigurationError(f"module {path!r} has an attribute {KERNELS}, which Tamiyo needs")
            if example is not None and not _is_torchs(holder) and modes is None:
                modes = [mode for mode in _MODES if _runs(model, example, mode)]
            self._path = f"{path}.{KERNELS}." if path else f"{KERNELS}."
            # Not an attribute that torch would register: the holder is this module's parent.
            object.__setattr__(self, "_holder", holder)
            holder.add_module(KERNELS, self)
            self._called = False
            unnoticed = (
                example is None or _is_torchs(holder) or all(_runs(model, example, mode) for mode in modes or ())
            )
            if unnoticed and not self._called:
                self._hook = model.register_load_state_dict_pre_hook(self._before_load)  # type: ignore[no-untyped-call]
                return
            self.remove()
        raise ConfigurationError(
            "every module of the model runs its own children, so none has room for kernels: run them by name instead"
        )

    def placed(self, model: nn.Module) -> bool:
        """Return whether the model still has the module at which this one is registered."""
        module: nn.Module | None = model
        for name in self._path.split(".")[:-1]:
            module = module._modules.get(name) if module is not None else None
        return module is self or self._holder is None

    def remove(self) -> None:
        """Leave the model."""
        if self._holder is not None:
            self._holder._modules.pop(KERNELS, None)
            object.__setattr__(self, "_holder", None)
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def leave(self) -> None:
        """Leave the model, with all that has grown; `come_back` undoes it."""
        for layer in self._of_name.values():
            layer.disconnect()
        self.remove()

    def come_back(self, model: nn.Module) -> None:
        """Become part of the model again after `leave`."""
        self.place(model)
        for layer in self._of_name.values():
            layer.connect()

    def take_over(self, former: GrownKernels) -> None:
        """Continue with the kernels that an earlier run has grown.

        Args:
            former: That run's, which has left the model.

        Raises:
            ConfigurationError: One of its layers is not watched now, or has too few seeds.
        """
        for name, layer in former.layers.items():
            if not len(layer.kernels):
                continue
            own = self._of_name.get(name)
            if own is None or len(own.seeds) <= max(seed.index for seed in layer.seeds if seed.loaded):
                raise ConfigurationError(
                    f"layer {name} has kernels of an earlier run: watch it too, with as many seeds, or attach "
                    "`tamiyo.host.export(model)`, which has plain layers instead"
                )
            own.take_over(layer)

    def mirror(self, original: GrownKernels) -> None:
        """Take over the kernels of the model that this one is a copy of; those that both have keep their parameters."""
        for name, layer in original.layers.items():
            own = self._of_name[name]
            if len(layer.kernels) or len(own.kernels):
                own.mirror(layer)
        if list(self._modules) != list(original._modules):  # in the same order: averages pair parameters by position
            registered = {key: self._modules[key] for key in original._modules}
            self._modules.clear()
            self._modules.update(registered)

    def _update(self, layer: KasminaLayer) -> None:
        """Register a layer that has kernels; a layer without them is not part of the model."""
        self.changes += 1
        key = _key(layer.layer_id)
        if len(layer.kernels):
            self._modules[key] = layer
        else:
            self._modules.pop(key, None)
        if self.on_change is not None:
            self.on_change(layer)

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model is not part of the run.
        return self.__dict__ | {"on_change": None}

    def _before_load(self, _: nn.Module, state: Mapping[str, Tensor], prefix: str, *_rest: Any) -> None:
        """Build and drop kernels as a state dict has them, before torch fills their parameters."""
        for name, layer in self._of_name.items():
            saved = state.get(f"{prefix}{self._path}{_key(layer.layer_id)}._extra_state")
            if saved is not None:
                layer.set_extra_state(saved)
            elif len(layer.kernels) and any(key.startswith(f"{prefix}{name}.") for key in state):
                layer.clear()


def without_kernels(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict of an attached model without what has grown: it loads into the plain model.

    The plain model computes something else if kernels had an effect; `export` keeps it.

    Args:
        state: The result of `model.state_dict()`, of the attached model or of a module that contains it.

    Returns:
        The entries of the user's own modules, with the same tensors.
    """
    return {key: value for key, value in state.items() if f".{KERNELS}." not in f".{key}"}


def kernels_of(model: nn.Module) -> GrownKernels | None:
    """Return the kernels of an attached model, or of a copy of one; None if it is not attached."""
    return next((module for module in model.modules() if isinstance(module, GrownKernels)), None)


def _key(layer_id: str) -> str:
    """Return a layer's name as the name of one child module, which must have no dot; no two layers share one."""
    return quote(layer_id, safe="").replace(".", ":")


def _places(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules at which kernels can be registered, the best first.

    The best is the last in the order of `named_parameters`. The next are layers of torch from the last one on that has
    parameters, which run no children that they do not know; then all others, the last ones first.
    """
    named = list(model.named_modules())
    fitting = [place for place in reversed(named) if not isinstance(place[1], _CONTAINERS)]
    if not fitting:
        raise ConfigurationError("the model has containers only, and no module that computes something")
    owners = [number for number, (_, module) in enumerate(named) if any(True for _ in module.parameters(recurse=False))]
    behind = {id(module) for _, module in named[owners[-1] if owners else 0 :]}
    others = sorted(fitting[1:], key=lambda place: not (id(place[1]) in behind and _is_torchs(place[1])))
    return [fitting[0], *others]


def _is_torchs(module: nn.Module) -> bool:
    """Return whether a module is one of torch's own classes, none of which runs a child that it does not know."""
    return type(module).__module__.startswith("torch.nn.modules.") and not isinstance(module, _CONTAINERS)


def _runs(model: nn.Module, example: Example, mode: Mode) -> bool:
    """Return whether the model runs on the example, without a trace of it."""
    try:
        with undisturbed(model), mode(model):
            call(model, example)
    except Exception as error:  # the user's forward pass may raise anything
        log.debug("the model does not run on example_input: %s", error)
        return False
    return True
