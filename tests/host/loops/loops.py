"""A small model, and the loop that trains it attached."""

from typing import Any

import torch
from torch import Tensor, nn

from tamiyo.host import Handle, HostSettings, attach
from tamiyo.host.testing import MemoryTransport
from tests.support.layers import attached_layer


def settings(**more: Any) -> HostSettings:
    values: dict[str, Any] = {
        "sample_interval": 3,
        "cooldown_steps": 0,
        "ramp_steps": 1,
        "overhead_budget": 1e6,
        "parameter_budget": 10**6,
        "drain_s": 0.0,
    }
    return HostSettings(**values | more)


class Listed(nn.Module):
    """Keeps its layers in a plain list too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)
        self.steps = [self.a, torch.relu, self.b]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


def attached(model: nn.Module, **more: Any) -> tuple[Handle, MemoryTransport, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    transport = MemoryTransport()
    options = {"settings": settings(), "transport": transport, "example_input": torch.randn(4, 8)} | more
    return attach(model, optimizer, **options), transport, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, handle: Handle, steps: int) -> None:
    for _ in range(steps):
        loss = model(torch.randn(16, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        handle.step(loss=loss)


def stir(model: nn.Module, layer_id: str) -> None:
    """Let a kernel have a large delta."""
    with torch.no_grad():
        for kernel in attached_layer(model, layer_id).kernels.values():
            for parameter in kernel.last.parameters():  # type: ignore[union-attr, operator]
                parameter.normal_(0, 2.0)
