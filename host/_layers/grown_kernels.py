"""The kernels of a model, as its last module: its other parameters and keys stay as they were before anything grew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tamiyo.host._layers.kasmina_layer import KERNELS, KasminaLayer
from tamiyo.schemas.errors import ConfigurationError

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
        for layer in layers.values():
            layer.on_change = self._update

    @property
    def layers(self) -> Mapping[str, KasminaLayer]:
        """All layers that can have kernels, by their names in the model."""
        return self._of_name

    def place(self, model: nn.Module) -> None:
        """Register with a model. Raises ConfigurationError if it has the attribute already."""
        path, holder = _last_module(model)
        if hasattr(holder, KERNELS):
            raise ConfigurationError(f"module {path!r} has an attribute {KERNELS}, which Tamiyo needs")
        self._path = f"{path}.{KERNELS}." if path else f"{KERNELS}."
        # Not an attribute that torch would register: the holder is this module's parent.
        object.__setattr__(self, "_holder", holder)
        holder.add_module(KERNELS, self)
        self._hook = model.register_load_state_dict_pre_hook(self._before_load)  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """Leave the model."""
        if self._holder is not None:
            del self._holder._modules[KERNELS]
            object.__setattr__(self, "_holder", None)
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

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


def _last_module(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the last module in the order of `named_parameters` that takes a child without running it."""
    fitting = [(name, module) for name, module in model.named_modules() if not isinstance(module, _CONTAINERS)]
    if not fitting:
        raise ConfigurationError("the model has containers only, and no module that computes something")
    return fitting[-1]
