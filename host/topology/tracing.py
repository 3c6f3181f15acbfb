"""Find the data flow between a model's layers: traced with torch.fx, else the order of execution."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, fx, nn

from tamiyo.host.common.undisturbed import undisturbed
from tamiyo.schemas.errors import ConfigurationError

log = logging.getLogger(__name__)

EdgeKind = Literal["data", "skip", "order"]
Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Edge:
    """Data flows from `source` to `target`; kind `skip` if it also does so through other layers."""

    source: str
    target: str
    kind: EdgeKind


@dataclass(frozen=True, slots=True)
class Execution:
    """The layers in the order in which they first ran, and the input of each."""

    order: tuple[str, ...]
    inputs: Mapping[str, Tensor]


def call(model: nn.Module, example: Example) -> Any:
    """Run `model` on an example: one tensor, a tuple of arguments, or a mapping of keyword arguments."""
    if isinstance(example, Tensor):
        return model(example)
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example)


def execute(model: nn.Module, layers: Mapping[str, nn.Module], example: Example) -> Execution:
    """Run the model once in eval mode, without gradients, to find which layers run, in what order, on what inputs.

    The run leaves no trace: modes, random streams, buffers and attributes are as before. Raises ConfigurationError if
    the model cannot run on the example.
    """
    inputs: dict[str, Tensor] = {}

    def watch(layer_id: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(first, Tensor):
                inputs.setdefault(layer_id, first.detach())

        return hook

    hooks = [m.register_forward_pre_hook(watch(layer_id), with_kwargs=True) for layer_id, m in layers.items()]
    try:
        with undisturbed(model):
            call(model, example)
    except Exception as error:  # the user's forward pass may raise anything
        raise ConfigurationError(
            f"the model cannot run on example_input ({type(error).__name__}: {error}): pass one batch as the training "
            "loop does, a tuple of arguments, or a mapping of keyword arguments"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return Execution(tuple(inputs), inputs)


class _Tracer(fx.Tracer):
    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._leaves = {id(module) for module in layers.values()}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self._leaves or super().is_leaf_module(m, module_qualified_name)


def edges(model: nn.Module, layers: Mapping[str, nn.Module], order: Sequence[str]) -> list[Edge]:
    """Return the data-flow edges between the layers in `order`; consecutive layers if the model cannot be traced."""
    try:
        with undisturbed(model):
            graph = _Tracer(layers).trace(model)
    except Exception as error:  # tracing runs the user's forward pass on proxies, which may raise anything
        log.info("the model cannot be traced (%s): edges follow the order of execution", error)
        return [Edge(a, b, "order") for a, b in pairwise(order)]
    wanted = set(order)
    name_of = {id(module): layer_id for layer_id, module in layers.items()}
    modules = dict(model.named_modules(remove_duplicate=False))
    reaching: dict[fx.Node, frozenset[str]] = {}
    pairs: dict[tuple[str, str], None] = {}
    for node in graph.nodes:
        upstream: frozenset[str] = frozenset().union(*(reaching[n] for n in node.all_input_nodes))
        layer = name_of.get(id(modules.get(str(node.target)))) if node.op == "call_module" else None
        if layer in wanted and layer is not None:
            pairs.update(dict.fromkeys((source, layer) for source in sorted(upstream, key=order.index)))
            upstream = frozenset({layer})
        reaching[node] = upstream
    return [Edge(a, b, _kind(a, b, pairs)) for a, b in pairs]


def _kind(source: str, target: str, pairs: Mapping[tuple[str, str], None]) -> EdgeKind:
    """Return `skip` if data also reaches `target` from `source` through another layer, else `data`."""
    seen: set[str] = set()
    frontier = [b for a, b in pairs if a == source and b != target]
    while frontier:
        layer = frontier.pop()
        if layer == target:
            return "skip"
        if layer not in seen:
            seen.add(layer)
            frontier += [b for a, b in pairs if a == layer]
    return "data"
