"""Export a grown model as plain torch modules, without any class of Tamiyo."""

from __future__ import annotations

import copy

from torch import Tensor, fx, nn

from tamiyo.host.layers.kasmina_layer import KasminaLayer
from tamiyo.host.layers.seed import Seed
from tamiyo.schemas.errors import KernelError

__all__ = ["export"]


def export(model: nn.Module) -> nn.Module:
    """Return a copy of a grown model with equal outputs, made of torch's and the user's modules only.

    A layer without a live kernel becomes its original module again; a grown one becomes a torch.fx GraphModule of the
    original and its kernels, each at its current share of the output. The copy can be saved, scripted, or loaded
    without Tamiyo.

    Args:
        model: The attached model, or any module that contains its layers; it stays as it is.

    Returns:
        The plain copy, in the same mode (train or eval), dtype and device.

    Raises:
        KernelError: torch.fx cannot trace a kernel, because its forward branches on values or shapes.

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
        ['GrownLayer', 'ReLU', 'Linear']
        >>> inputs = torch.randn(3, 4)
        >>> torch.equal(plain(inputs), model(inputs))
        True
    """
    copied = copy.deepcopy(model)
    plain: dict[KasminaLayer, nn.Module] = {
        module: _plain(module) for module in copied.modules() if isinstance(module, KasminaLayer)
    }
    if isinstance(copied, KasminaLayer):
        return plain[copied]
    # With duplicates, because one layer may have several places.
    places = [n for n, m in copied.named_modules(remove_duplicate=False) if isinstance(m, KasminaLayer)]
    for place in places:
        parent, _, name = place.rpartition(".")
        holder, layer = copied.get_submodule(parent), copied.get_submodule(place)
        if isinstance(layer, KasminaLayer):  # not replaced yet through another path to its holder
            setattr(holder, name, plain[layer])
    return copied


class _Grown(nn.Module):
    """The computation of a grown layer in a form that torch.fx can trace."""

    def __init__(self, layer: KasminaLayer, live: list[Seed]) -> None:
        super().__init__()
        self.base = layer.base
        self.alphas = [seed.alpha for seed in live]
        for number, seed in enumerate(live):
            self.add_module(f"kernel_{number}", seed.kernel)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.base(input)
        grown = output
        for number, alpha in enumerate(self.alphas):
            delta: Tensor = self.get_submodule(f"kernel_{number}")(input, output)
            grown = grown + delta if alpha == 1.0 else grown + alpha * delta
        return grown


def _plain(layer: KasminaLayer) -> nn.Module:
    """Return the plain module that computes what `layer` computes now."""
    live = [seed for seed in layer.seeds if seed.live]
    if not live:
        return layer.base

    class Tracer(fx.Tracer):
        # A local class, so that the GraphModule keeps no reference to one of this package.
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return m is layer.base or super().is_leaf_module(m, module_qualified_name)

    root = _Grown(layer, live).train(layer.training)
    try:
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
