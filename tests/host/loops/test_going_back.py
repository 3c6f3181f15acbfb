"""A run goes back to a saved step of the same process, or refuses a state that is not its own."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tamiyo.host import attach
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.errors import KernelError
from tests.host.loops.loops import Listed, settings
from tests.support.layers import attached_layer


class Script:
    """A training loop that goes back to a saved step."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Listed()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.transport = MemoryTransport()
        self.handle = attach(
            self.model, self.optimizer, example_input=torch.randn(4, 8), transport=self.transport,
            settings=settings(sample_interval=5, cooldown_steps=8, ramp_steps=6),
        )  # fmt: skip

    def train(self, until: int) -> list[float]:
        losses = []
        for step in range(self.handle.stats.step, until):
            inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
            loss = (self.model(inputs) - inputs[:, :2].sin()).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.handle.step(loss=loss)
            losses.append(float(loss.detach()))
        return losses


def test_a_run_goes_back_to_an_earlier_step_and_on_from_there() -> None:
    script = Script()
    script.train(10)
    script.transport.decide("load_kernel", layer="a", blueprint="parallel_expansion")
    script.train(13)  # the kernel ramps
    saved = copy.deepcopy(script.handle.state_dict())
    first = script.train(40)
    script.transport.decide("load_kernel", layer="b", blueprint="parallel_expansion")
    script.train(60)
    kernel = list(attached_layer(script.model, "a").kernels.parameters())
    script.handle.load_state_dict(saved)
    assert script.handle.stats.step == 13
    assert script.handle.stats.kernel_parameters == sum(p.numel() for p in kernel)
    # The kernel that was there stays the same one, so that whoever refers to its parameters still can.
    assert all(a is b for a, b in zip(kernel, attached_layer(script.model, "a").kernels.parameters(), strict=True))
    frames = len(script.transport.records("telemetry.model.performance_metrics"))
    assert script.train(40) == first  # to the bit, on the same ramp, without the later kernel
    steps = [frame.step for frame in script.transport.records("telemetry.model.performance_metrics")[frames:]]
    assert steps == [15, 20, 25, 30, 35, 40]
    script.handle.load_state_dict(saved)
    script.transport.decide("load_kernel", layer="b", blueprint="bottleneck")
    script.train(14)  # three steps after the load at step 10: the cooldown of 8 has not passed
    outcome = script.transport.records("tamiyo.adaptation.outcomes")[-1]
    assert outcome.reason.startswith("cooldown")
    script.train(21)
    script.transport.decide("load_kernel", layer="b", blueprint="bottleneck")
    script.train(22)
    assert script.transport.records("tamiyo.adaptation.outcomes")[-1].status == "executed"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda saved: saved["model"].pop("a.weight"),
        lambda saved: saved["model"].update({"a.weight": torch.zeros(3, 3)}),
        lambda saved: saved["model"].update({"c.weight": torch.zeros(3, 3)}),
        lambda saved: saved.update({"model": None}),
    ],
)
def test_a_state_of_another_network_changes_nothing(spoil: Callable[[dict[str, Any]], object]) -> None:
    script = Script()
    script.train(4)
    saved = copy.deepcopy(script.handle.state_dict())
    spoil(saved)
    script.train(6)
    before = {k: v.clone() for k, v in script.model.state_dict().items()}
    with pytest.raises(KernelError):
        script.handle.load_state_dict(saved)
    assert all(torch.equal(before[name], value) for name, value in script.model.state_dict().items())
    assert script.handle.stats.step == 6
    script.train(8)
