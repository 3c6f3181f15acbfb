"""Find the data flow between a model's layers: traced with torch.fx, else the order of execution."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, fx, nn

from tamiyo.host._common.tracing_thread import TRACING, ThreadTracer
from tamiyo.host._common.undisturbed import undisturbed
from tamiyo.host.blueprints._layer_kinds import layer_input
from tamiyo.schemas.errors import ConfigurationError

log = logging.getLogger(__name__)

MAX_SKIPS = 8
"""Most skips into one call of a layer; the longest stage of a ResNet-50 needs six."""
MAX_EDGES = 10
"""Most edges per layer in the whole model, which is also what a topology record takes."""

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
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = layer_input(module, args, kwargs)
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


class _Tracer(ThreadTracer):
    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._leaves = {id(module) for module in layers.values()}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self._leaves or super().is_leaf_module(m, module_qualified_name)


def edges(model: nn.Module, layers: Mapping[str, nn.Module], order: Sequence[str]) -> list[Edge]:
    """Return the data-flow edges between the layers in `order`; consecutive layers if the model cannot be traced.

    An edge joins two layers if data flows from one to the other without passing through a third. It is a `skip` if the
    data also does so through other layers, else `data`. In a residual stream x + f(x) + g(x) + ... every earlier layer
    has a skip to every later one, so a call of a layer keeps only those from its MAX_SKIPS newest sources; the paths
    through other layers remain. All edges together are at most MAX_EDGES per layer.

    Args:
        model: The model; it is traced, not changed.
        layers: Modules by layer_id.
        order: The layer_ids to join, in the order in which they run.

    Returns:
        The edges, target by target, each target's sources in `order`.
    """
    try:
        with undisturbed(model), TRACING:
            graph = _Tracer(layers).trace(model)
    except Exception as error:  # tracing runs the user's forward pass on proxies, which may raise anything
        log.info("the model cannot be traced (%s): edges follow the order of execution", error)
        return [Edge(a, b, "order") for a, b in pairwise(order)]
    rank = {layer_id: position for position, layer_id in enumerate(order)}
    name_of = {id(module): layer_id for layer_id, module in layers.items() if layer_id in rank}
    modules = dict(model.named_modules(remove_duplicate=False))
    calls: list[str] = []
    flow = _Flow()
    reaching: dict[fx.Node, _Sources] = {}
    found: dict[tuple[str, str], EdgeKind] = {}
    for node in graph.nodes:
        sources = flow.join([reaching[n] for n in node.all_input_nodes])
        layer = name_of.get(id(modules.get(str(node.target)))) if node.op == "call_module" else None
        if layer is not None:
            into: dict[str, EdgeKind] = {calls[call]: "skip" for call in sources.passed}
            into |= dict.fromkeys((calls[call] for call in sources.direct), "data")
            for source in sorted(into, key=rank.__getitem__):
                if found.get((source, layer)) != "data":
                    found[source, layer] = into[source]
            sources = flow.call(sources)
            calls.append(layer)
        reaching[node] = sources
    return _thinned([Edge(a, b, kind) for (a, b), kind in found.items()], MAX_EDGES * len(order))


@dataclass(frozen=True, slots=True)
class _Sources:
    """The calls of layers from which data reaches a value without passing through another call, newest first."""

    direct: tuple[int, ...] = ()
    """Those from which no data reaches another of them."""
    passed: tuple[int, ...] = ()
    """The newest of the rest: their data also reaches the value through other calls."""


class _Flow:
    """Follows data through the calls of layers; the calls have numbers in the order in which they run."""

    def __init__(self) -> None:
        self._before: list[int] = []
        """For each call, the set of calls that its input depends on, as the bits of an integer."""

    def join(self, parts: Sequence[_Sources]) -> _Sources:
        """Return the sources of a value that is computed from values with the sources `parts`.

        A source that is passed by stays so in whatever the value flows into, and so do the newer ones: the sources that
        are left out here could not be among the newest later.
        """
        different = list(dict.fromkeys(parts))
        if len(different) < 2:
            return different[0] if different else _Sources()
        passed = {call for part in different for call in part.passed}
        direct = {call for part in different for call in part.direct}
        behind = 0
        for call in direct:
            behind |= self._before[call]
        overtaken = {call for call in direct if behind >> call & 1}
        return _Sources(
            tuple(sorted(direct - overtaken, reverse=True)),
            tuple(sorted(passed | overtaken, reverse=True)[:MAX_SKIPS]),
        )

    def call(self, sources: _Sources) -> _Sources:
        """Add a call whose input has `sources`; return the sources of its output, the call itself."""
        before = 0
        for call in sources.direct:
            before |= self._before[call] | 1 << call
        self._before.append(before)
        return _Sources((len(self._before) - 1,))


def _thinned(edges: list[Edge], limit: int) -> list[Edge]:
    """Return at most `limit` edges, every layer's first ones before any layer's further ones."""
    if len(edges) <= limit:
        return edges
    outgoing: Counter[str] = Counter()
    incoming: Counter[str] = Counter()
    precedence = []
    for edge in edges:
        precedence.append(min(outgoing[edge.source], incoming[edge.target]))
        outgoing[edge.source] += 1
        incoming[edge.target] += 1
    kept = sorted(range(len(edges)), key=precedence.__getitem__)[:limit]
    return [edges[position] for position in sorted(kept)]
