"""Training loops as people write them, each run twice with the same seed: attached, and as it is.

`check` holds what is promised of any loop: the same losses to the bit until a decision is executed, the same output at
the load, a kernel that is trained and leaves again, and no error of ours anywhere.
"""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tamiyo.host import Handle, attach
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.topics import LAYER_HEALTH, MODEL_PERFORMANCE, OUTCOMES
from tests.host.loops.loops import settings

STEPS, LOAD, UNLOAD = 15, 6, 10
"""Steps of a loop, and those after which a kernel joins and begins to leave."""


def batch(step: int, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(size, 8, generator=generator)
    return inputs, (inputs[:, 0] > 0).long()


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


class Loop:
    """A plain loop, of which others override a part."""

    example: Any = torch.zeros(4, 8)
    layer: str | None = None
    """The layer that grows; None: the first."""
    tolerance = 1e-5
    """Of the loss at the load, which another order of additions changes a little in low precision."""

    def __init__(self) -> None:
        self.model = self.make()
        self.optimizer: Any = self.optimize()
        self.handle: Handle | None = None

    def make(self) -> nn.Module:
        return mlp()

    def optimize(self) -> Any:
        return torch.optim.Adam([p for p in self.model.parameters() if p.requires_grad], lr=0.01)

    def attached(self, handle: Handle) -> None:
        """What the loop does after `attach`."""
        self.handle = handle

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.model(inputs), labels)

    def step(self, number: int) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(*batch(number))
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss

    def given(self, loss: Tensor) -> Any:
        """What the loop passes to `handle.step`."""
        return loss


def check(make: Callable[[], Loop], caplog: pytest.LogCaptureFixture) -> None:
    """Run a loop without and with Tamiyo, and compare them."""
    torch.manual_seed(0)
    plain = make()
    expected = [_number(plain.step(number)) for number in range(STEPS)]
    torch.manual_seed(0)
    loop, transport = make(), MemoryTransport()
    handle = attach(
        loop.model, loop.optimizer, example_input=loop.example, settings=settings(ramp_steps=2, growth_interval=3),
        transport=transport,
    )  # fmt: skip
    loop.attached(handle)
    layer = loop.layer or handle.layers[0]
    own = {id(parameter) for parameter in loop.model.parameters()}
    found: list[float] = []
    kernels: list[tuple[Tensor, Tensor]] = []
    with caplog.at_level(logging.WARNING, logger="tamiyo.host"):
        for number in range(STEPS):
            if number == LOAD:
                transport.decide("load_kernel", layer=layer, blueprint="parallel_expansion")
            if number == UNLOAD:
                assert any(not torch.equal(parameter, before) for parameter, before in kernels), "it is not trained"
                transport.decide("unload_kernel", layer=layer)
            loss = loop.step(number)
            found.append(_number(loss))
            handle.step(loss=loop.given(loss))
            if number == LOAD:
                joined = [parameter for parameter in loop.model.parameters() if id(parameter) not in own]
                kernels = [(parameter, parameter.detach().clone()) for parameter in joined]
    assert found[: LOAD + 1] == expected[: LOAD + 1]
    assert found[LOAD + 1] == pytest.approx(expected[LOAD + 1], abs=loop.tolerance)
    assert [(o.status, o.reason) for o in transport.records(OUTCOMES.name)] == [("executed", "")] * 2
    assert not [name for name, _ in loop.model.named_parameters() if "tamiyo" in name]
    assert handle.stats.errors == transport.dropped == 0
    assert [record.getMessage() for record in caplog.records] == []
    frames = [frame.step for frame in transport.records(MODEL_PERFORMANCE.name)]
    assert frames == [3, 6, 9, 12, 15]
    assert transport.records(LAYER_HEALTH.name)
    handle.export()
    handle.close()


def _number(loss: Tensor) -> float:
    return float(loss.detach().float().mean())
