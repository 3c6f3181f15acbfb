"""Export a grown model as plain torch modules, without any class of Tamiyo."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from tamiyo.host._common.copying import copied
from tamiyo.host._common.tracing_thread import TRACING, ThreadTracer
from tamiyo.host._layers.grown_kernels import kernels_of
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._layers.seed import Seed
from tamiyo.schemas.errors import KernelError

__all__ = ["export"]


def export(model: nn.Module) -> nn.Module:
    """Return a copy of a grown model with equal outputs, made of torch's and the user's modules only.

    A layer without a live kernel is its original module. A grown one too, with a forward hook: a torch.fx GraphModule
    of its kernels, each at its current share of the output, which is also its child `grown`. So whatever reads a
    layer's class, `weight` or `in_features` still can. The copy can be saved and loaded without Tamiyo, exported by
    torch.export, and traced.

    Args:
        model: The attached model, or any module that contains its layers; it stays as it is.

    Returns:
        The plain copy, in the same mode (train or eval), dtype and device.

    Raises:
        KernelError: torch.fx cannot trace a kernel, because its forward branches on values or shapes; or an attribute
            of the model cannot be copied.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from tamiyo.host import attach, export
        >>> from tamiyo.host.testing import MemoryTransport
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> transport = MemoryTransport()
        >>> handle = attach(model, optimizer, example_input=torch.zeros(2, 4), transport=transport)
        >>> decision = transport.decide("load_kernel", layer="0", blueprint="low_rank")
        >>> handle.step(loss=0.7)
        >>> handle.close()
        >>> plain = export(model)
        >>> [type(module).__name__ for module in plain]
        ['Linear', 'ReLU', 'Linear']
        >>> inputs = torch.randn(3, 4)
        >>> torch.equal(plain(inputs), model(inputs))
        True
    """
    plain = copied(model)
    kernels = kernels_of(plain)
    if kernels is not None:
        for layer in kernels.layers.values():
            _hook_kernels(layer)
        kernels.remove()
    wrappers = {module: _unwrapped(module) for module in plain.modules() if isinstance(module, KasminaLayer)}
    if isinstance(plain, KasminaLayer):
        return wrappers[plain]
    # With duplicates, because one layer may have several places.
    places = [n for n, m in plain.named_modules(remove_duplicate=False) if isinstance(m, KasminaLayer)]
    for place in places:
        parent, _, name = place.rpartition(".")
        holder, wrapper = plain.get_submodule(parent), plain.get_submodule(place)
        if isinstance(wrapper, KasminaLayer):  # not replaced yet through another path to its holder
            setattr(holder, name, wrappers[wrapper])
    return plain


class _Deltas(nn.Module):
    """The kernels of a layer, in a form that torch.fx can trace."""

    def __init__(self, live: list[Seed]) -> None:
        super().__init__()
        self.alphas = [seed.alpha for seed in live]
        for number, seed in enumerate(live):
            self.add_module(f"kernel_{number}", seed.kernel)

    def added(self, input: Tensor, output: Tensor) -> Tensor:
        grown = output
        for number, alpha in enumerate(self.alphas):
            delta: Tensor = self.get_submodule(f"kernel_{number}")(input, output)
            grown = grown + delta if alpha == 1.0 else grown + alpha * delta
        return grown


class _Hook(_Deltas):
    """A forward hook that adds the deltas to the output of the module it is registered with."""

    def __init__(self, live: list[Seed], keyword: str | None, *, in_tuple: bool) -> None:
        super().__init__(live)
        self.keyword = keyword
        self.in_tuple = in_tuple

    def forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        input = args[0] if self.keyword is None else kwargs[self.keyword]
        return (self.added(input, output[0]), output[1]) if self.in_tuple else self.added(input, output)


class _Wrapper(_Deltas):
    """The computation of a layer that stands alone."""

    def __init__(self, base: nn.Module, live: list[Seed]) -> None:
        super().__init__(live)
        self.base = base

    def forward(self, input: Tensor) -> Tensor:
        return self.added(input, self.base(input))


def _hook_kernels(layer: KasminaLayer) -> None:
    """Let a layer in place compute what it computes now by a hook of torch's own classes."""
    layer.disconnect()
    live = [seed for seed in layer.seeds if seed.live]
    if live and layer.hooks is not None:
        hook = _traced(layer, _Hook(live, layer.hooks.keyword, in_tuple=layer.hooks.in_tuple), live)
        layer.base.add_module("grown", hook)
        layer.base.register_forward_hook(hook, prepend=True, with_kwargs=True)


def _unwrapped(layer: KasminaLayer) -> nn.Module:
    """Return the plain module that computes what a wrapper computes now."""
    live = [seed for seed in layer.seeds if seed.live]
    return _traced(layer, _Wrapper(layer.base, live), live) if live else layer.base


def _traced(layer: KasminaLayer, root: nn.Module, live: list[Seed]) -> fx.GraphModule:
    """Return `root` as a module of torch's own classes. Raises KernelError if torch.fx cannot trace a kernel."""

    class Tracer(ThreadTracer):
        # A local class, so that the GraphModule keeps no reference to one of this package.
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return m is layer.base or super().is_leaf_module(m, module_qualified_name)

    root.train(layer.training)
    try:
        with TRACING:
            graph = Tracer().trace(root)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        kinds = ", ".join(sorted({type(seed.kernel).__name__ for seed in live}))
        raise KernelError(
            f"layer {layer.layer_id!r} cannot be exported: torch.fx cannot trace {kinds} ({error}); "
            "a kernel's forward must not branch on values or shapes"
        ) from error
    for node in graph.nodes:
        # Both refer to the traced classes, which cannot be saved.
        node.meta.clear()
        node.type = None
    return fx.GraphModule(root, graph, class_name="GrownLayer")
