"""Write a blueprint: a recipe for a kernel of your own. Then load it into a network that is being trained.

python examples/write_a_blueprint.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tamiyo.host import Blueprint, HostSettings, Kernel, LayerSpec, attach, register
from tamiyo.host.testing import MemoryTransport


class GatedKernel(Kernel):
    """last(sigmoid(gate(x)) * value(x)), a gated linear unit beside a layer."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.gate = nn.Linear(inputs, width)
        self.value = nn.Linear(inputs, width)
        self.last = nn.Linear(width, outputs)  # starts at zero: a fresh kernel changes nothing

    def hidden(self, layer_input: Tensor, layer_output: Tensor) -> Tensor:
        """Return the features that `last` projects onto the layer's output."""
        return torch.sigmoid(self.gate(layer_input)) * self.value(layer_input)


@register
class GatedUnit(Blueprint):
    """A gated linear unit, four times as wide as the layer, for Linear layers."""

    name = "example_gated_unit"  # on the wire, in decisions and in stored kernels

    def supports(self, spec: LayerSpec) -> bool:
        """Return whether a kernel of this kind can sit at the layer."""
        return spec.type == "linear"

    def parameters(self, spec: LayerSpec) -> int:
        """Return exactly how many parameters `make` creates; the host's budget depends on it."""
        width = 4 * spec.out_features
        return 2 * (spec.in_features * width + width) + width * spec.out_features + spec.out_features

    def flops(self, spec: LayerSpec) -> int:
        """Return the multiply-adds of one sample's forward pass."""
        width = 4 * spec.out_features
        return (2 * spec.in_features * width + width * spec.out_features) * spec.positions

    def make(self, spec: LayerSpec) -> Kernel:
        """Return the kernel's modules; the caller seeds them and sets `last` to zero."""
        return GatedKernel(spec.in_features, 4 * spec.out_features, spec.out_features)


def main() -> None:
    """Load the kernel at layer 0 and train it."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 4)
    targets = inputs[:, :1] * inputs[:, 1:2]  # a product: what a gate can compute and a small ReLU network cannot
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    transport = MemoryTransport()
    settings = HostSettings(parameter_budget=1_000)
    handle = attach(model, optimizer, example_input=inputs, settings=settings, transport=transport)

    def train(steps: int) -> float:
        for _ in range(steps):
            loss = F.mse_loss(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            handle.step(loss=loss)
        return loss.item()

    print(f"without the kernel: loss {train(300):.3f}")
    transport.decide("load_kernel", layer="0", blueprint="example_gated_unit")
    print(f"with the kernel:    loss {train(300):.3f}")
    handle.close()
    (outcome,) = transport.records("tamiyo.adaptation.outcomes")
    print(f"{outcome.type} {outcome.blueprint}: {outcome.status}, {handle.stats.kernel_parameters} parameters added")


if __name__ == "__main__":
    main()
