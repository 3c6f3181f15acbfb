"""Choose the layers of a model that are watched and can grow."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from tamiyo.host._common.undisturbed import training, undisturbed
from tamiyo.host._topology.tracing import Example, call, execute
from tamiyo.host.blueprints._layer_kinds import growable, has_lazy_parameters, layer_type
from tamiyo.host.blueprints._layer_spec import LayerSpec
from tamiyo.schemas.errors import ConfigurationError, KernelIncompatible

log = logging.getLogger(__name__)

_LONGEST = 200
"""Characters of a name on the topics."""


@dataclass(frozen=True, slots=True)
class SelectedLayer:
    """A layer to watch: its name in the model, its geometry, and its module."""

    name: str
    spec: LayerSpec
    module: nn.Module


@dataclass(frozen=True, slots=True)
class Selection:
    """The layers to watch by layer_id, and why others are not."""

    layers: Mapping[str, SelectedLayer]
    left_alone: Mapping[str, str]
    """Reason by module name."""


def select_layers(model: nn.Module, wanted: Literal["all"] | Iterable[str], example: Example) -> Selection:
    """Return the layers to watch, in the order in which they run on `example`.

    A module under several names is one layer, named by the first. "all" means those that kernels can grow at; a layer
    within another, such as a projection of attention, is a part of it. Norms and embeddings are layers only if `wanted`
    names them.

    The model runs in eval and in train mode, and is afterwards as it was. Layers that do not run in both are left
    alone: a kernel there would have no effect, or not always.

    Raises:
        ConfigurationError: The model has lazy parameters, cannot run on `example`, or lacks a wanted layer; a wanted
            layer does not run or cannot be watched; or no layer is left.
    """
    if has_lazy_parameters(model):
        raise ConfigurationError(
            "the model has lazy parameters, which have no shape yet: run one batch first, then make the optimizer"
        )
    modules = _candidates(model)
    chosen = growable(modules) if wanted == "all" else require_known(wanted, modules, "layers")
    ids = identifiers([name for name in modules if name in chosen])
    layers = {name: modules[name] for name in ids}
    run = execute(model, layers, example)
    left_alone = dict.fromkeys(ids, "it does not run on example_input: its weights may be read directly")
    trained = _in_training(model, layers, example)
    selected: dict[str, SelectedLayer] = {}
    with undisturbed(model):  # a spec runs its layer
        for name in run.order:
            if trained is not None and name not in trained:
                left_alone[name] = "it does not run in training mode"
                continue
            try:
                spec = LayerSpec.of(ids[name], layers[name], run.inputs[name])
            except KernelIncompatible as error:
                left_alone[name] = f"it cannot carry kernels: {error}"
            else:
                del left_alone[name]
                selected[ids[name]] = SelectedLayer(name, spec, layers[name])
    if left_alone and wanted != "all":
        raise ConfigurationError("; ".join(f"layer {name}: {reason}" for name, reason in left_alone.items()))
    if not selected:
        raise ConfigurationError(
            "no Linear, convolution or attention of the model runs on example_input: nothing to attach to"
        )
    return Selection(selected, left_alone)


def require_known(names: Iterable[str], known: Iterable[str], argument: str) -> frozenset[str]:
    """Return `names` as a set. Raises ConfigurationError if one is not among `known`, naming the argument."""
    wanted, existing = frozenset(names), frozenset(known)
    if wanted - existing:
        missing, there_are = ", ".join(sorted(wanted - existing)), ", ".join(sorted(existing))
        raise ConfigurationError(f"{argument}: there is no layer {missing}; there are {there_are}")
    return wanted


def identifier(name: str) -> str:
    """Return a name as the topics accept it: other characters as `:hex:`, and a long name shortened by its hash."""
    found = re.sub(r"[^\w.:/\-]", lambda match: f":{ord(match.group()):x}:", name)
    if not re.match(r"\w", found):
        found = f"_{found}"
    if len(found) > _LONGEST:
        found = f"{found[: _LONGEST - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return found


def identifiers(names: Iterable[str]) -> dict[str, str]:
    """Return an identifier for each name; no two are equal."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        own = candidate = identifier(name or "model")
        number = 1
        while candidate in taken:
            number += 1
            candidate = f"{own[: _LONGEST - 8]}:{number}"
        taken.add(candidate)
        found[name] = candidate
    return found


def _in_training(model: nn.Module, layers: Mapping[str, nn.Module], example: Example) -> set[str] | None:
    """Return the layers that run in training mode; None if that cannot be found out with this example."""
    reached: set[str] = set()
    hooks = [module.register_forward_hook(lambda *_, name=name: reached.add(name)) for name, module in layers.items()]
    try:
        with undisturbed(model), training(model):
            call(model, example)
    except Exception as error:  # one sample and batch statistics, for example: the training loop has other batches
        log.info("the model does not run on example_input in training mode (%s)", error)
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return reached


def _candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Return all modules of a known type by the first of their names."""
    return {name: module for name, module in model.named_modules() if layer_type(module) is not None}
