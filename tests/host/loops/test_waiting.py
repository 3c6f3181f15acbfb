"""Between two sampled steps nothing of ours waits for the device, grown or not."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tamiyo.host import HostSettings, attach
from tamiyo.host.testing import MemoryTransport
from tests.support.layers import attached_layers
from tests.support.synchronisations import Elsewhere, Synchronisations


class Loop:
    def __init__(self, *, attached: bool, fused: bool = False, **more: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8), nn.Linear(8, 2))
        # Others than these read their step counters of every parameter themselves.
        kind: Any = torch.optim.AdamW if fused else torch.optim.SGD
        self.optimizer = kind(self.model.parameters(), lr=1e-3, **({"fused": True} if fused else {}))
        self.transport = MemoryTransport()
        values: dict[str, Any] = {"sample_interval": 10, "cooldown_steps": 0, "ramp_steps": 15, "overhead_budget": 1e6}
        self.handle = (
            attach(
                self.model, self.optimizer, example_input=torch.zeros(2, 2, 8), transport=self.transport,
                loss_fn=F.cross_entropy, held_out=(torch.randn(8, 2, 8), torch.zeros(8, dtype=torch.long)),
                settings=HostSettings(**values | {"parameter_budget": 10**6, "drain_s": 0.0} | more),
            )
            if attached
            else None
        )  # fmt: skip

    def train(self, steps: int) -> list[dict[str, int]]:
        """Return what each step has waited for."""
        waited = []
        for _ in range(steps):
            inputs = torch.randn(16, 2, 8)
            with Synchronisations() as seen:
                loss = F.cross_entropy(self.model(inputs), torch.zeros(16, dtype=torch.long))
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                if self.handle is not None:
                    self.handle.step(loss=loss.as_subclass(Elsewhere))
            waited.append(dict(seen.counts))
        return waited


@pytest.mark.parametrize("fused", [False, True])
def test_a_grown_model_waits_at_sampled_steps_only(fused: bool) -> None:
    plain = Loop(attached=False, fused=fused).train(1)[0]
    assert not plain
    loop = Loop(attached=True, fused=fused)
    assert loop.handle is not None
    assert loop.train(9) == [plain] * 9
    for layer in attached_layers(loop.model).values():
        layer.defer_errors()  # as on every device but a CPU, where values are there at once
    for layer_id in loop.handle.layers:
        loop.transport.decide("load_kernel", layer=layer_id, blueprint="bottleneck")
    loop.train(1)
    for _ in range(4):  # on the ramps and after them
        *between, sampled = loop.train(10)
        assert between == [plain] * 9
        assert sum(sampled.values()) > sum(plain.values())
    assert loop.handle.stats.executed == 3
    assert loop.handle.stats.errors == 0


def test_snapshots_of_healthy_kernels_wait_for_nothing() -> None:
    loop = Loop(attached=True, ramp_steps=1, sample_interval=1000)
    plain = Loop(attached=False).train(1)[0]
    for layer in attached_layers(loop.model).values():
        layer.defer_errors()
    loop.transport.decide("load_kernel", layer="3", blueprint="bottleneck")
    loop.train(1)
    assert loop.train(150) == [plain] * 150
    assert attached_layers(loop.model)["3"].seeds[0].snapshots
