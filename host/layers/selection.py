"""Choose the layers of a model that get wrapped."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from tamiyo.host.blueprints.layer_spec import LayerSpec
from tamiyo.host.layers.kasmina_layer import KasminaLayer
from tamiyo.host.topology.tracing import Example, execute
from tamiyo.schemas.errors import ConfigurationError, KernelIncompatible

log = logging.getLogger(__name__)

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True, slots=True)
class SelectedLayer:
    """A layer to wrap: its geometry, its module, and every (parent, attribute) of the model that refers to it."""

    spec: LayerSpec
    module: nn.Module
    places: tuple[tuple[nn.Module, str], ...]


def select_layers(
    model: nn.Module, wanted: Literal["all"] | Iterable[str], example: Example
) -> dict[str, SelectedLayer]:
    """Return the layers to wrap by layer_id, in the order in which they run on `example`.

    A module under several names is one layer, named by the first.

    Raises:
        ConfigurationError: The model is attached already, is a single layer, cannot run on `example`, or lacks a wanted
            layer; a wanted layer does not run or cannot carry kernels; or no layer is left.
    """
    if any(isinstance(module, KasminaLayer) for module in model.modules()):
        raise ConfigurationError("the model is attached already: detach it first, or attach a fresh one")
    if isinstance(model, _KINDS):
        raise ConfigurationError(
            "the model is a single layer, which cannot be wrapped in place: put it in a Sequential"
        )
    modules, places = _candidates(model)
    chosen = set(modules) if wanted == "all" else require_known(wanted, modules, "layers")
    run = execute(model, {layer_id: modules[layer_id] for layer_id in modules if layer_id in chosen}, example)
    selected: dict[str, SelectedLayer] = {}
    for layer_id in run.order:
        try:
            spec = LayerSpec.of(layer_id, modules[layer_id], run.inputs[layer_id])
        except KernelIncompatible as error:
            if wanted != "all":
                raise ConfigurationError(f"layer {layer_id} cannot carry kernels: {error}") from error
            log.info("layer %s is not wrapped: %s", layer_id, error)
        else:
            selected[layer_id] = SelectedLayer(spec, modules[layer_id], tuple(places[layer_id]))
    idle = chosen - set(run.order)
    if idle and wanted != "all":
        raise ConfigurationError(f"layers {', '.join(sorted(idle))} do not run on example_input")
    if not selected:
        raise ConfigurationError("no Linear, Conv1d or Conv2d of the model runs on example_input: nothing to attach to")
    return selected


def require_known(names: Iterable[str], known: Iterable[str], argument: str) -> frozenset[str]:
    """Return `names` as a set. Raises ConfigurationError if one is not among `known`, naming the argument."""
    wanted, existing = frozenset(names), frozenset(known)
    if wanted - existing:
        missing, there_are = ", ".join(sorted(wanted - existing)), ", ".join(sorted(existing))
        raise ConfigurationError(f"{argument}: there is no layer {missing}; there are {there_are}")
    return wanted


def _candidates(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, list[tuple[nn.Module, str]]]]:
    """Return all Linear, Conv1d and Conv2d modules by layer_id, and the places of each."""
    names: dict[int, str] = {}
    modules: dict[str, nn.Module] = {}
    places: dict[str, list[tuple[nn.Module, str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _KINDS):
            layer_id = names.setdefault(id(module), name)
            parent, _, attribute = name.rpartition(".")
            modules[layer_id] = module
            places.setdefault(layer_id, []).append((model.get_submodule(parent), attribute))
    return modules, places
