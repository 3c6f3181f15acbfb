"""A grown model as plain torch: no class of ours left in it."""

from __future__ import annotations

import copy

from torch import Tensor, fx, nn

from tamiyo.host.layers.kasmina_layer import KasminaLayer
from tamiyo.host.layers.seed import Seed
from tamiyo.schemas.errors import KernelError


def export(model: nn.Module) -> nn.Module:
    """A copy of `model` with equal outputs, made of torch's own and the user's modules only; `model` is untouched.

    A layer without a live kernel is its base again; a grown one is a torch.fx GraphModule of base and kernels, each
    kernel at the share of the output that it has now. Can be saved, scripted, or loaded where Tamiyo is not
    installed. Raises KernelError where a kernel's code cannot be traced.
    """
    copied = copy.deepcopy(model)
    plain: dict[KasminaLayer, nn.Module] = {
        module: _plain(module) for module in copied.modules() if isinstance(module, KasminaLayer)
    }
    if isinstance(copied, KasminaLayer):
        return plain[copied]
    # duplicates too: one layer may sit in several places
    places = [n for n, m in copied.named_modules(remove_duplicate=False) if isinstance(m, KasminaLayer)]
    for place in places:
        parent, _, name = place.rpartition(".")
        holder, layer = copied.get_submodule(parent), copied.get_submodule(place)
        if isinstance(layer, KasminaLayer):  # not yet replaced through another path to its holder
            setattr(holder, name, plain[layer])
    return copied


class _Grown(nn.Module):
    """What a grown layer computes, in the form that torch.fx can read."""

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
    live = [seed for seed in layer.seeds if seed.live]
    if not live:
        return layer.base

    class Tracer(fx.Tracer):
        # local, so that the GraphModule does not keep a reference to a class of ours
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
        # these name the classes that were traced through, and annotations as text, which cannot be saved
        node.meta.clear()
        node.type = None
    return fx.GraphModule(root, graph, class_name="GrownLayer")
