"""Runs whose optimizer is wrapped, one of several, replaced, or frozen in part, from attach to resume."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Rprop

from tamiyo.host import Handle, attach
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.errors import ConfigurationError, KernelError
from tests.host.adaptation.wrapped_optimizers import SAM, Imitating, Lookahead, Passing, Several
from tests.support.runs import data, network, settings


class Loop:
    def __init__(
        self,
        make: Callable[[nn.Module], Any],
        model: nn.Module | None = None,
        *,
        twin_budget: float = 0.0,
        planned_steps: int | None = None,
    ) -> None:
        self.model = model or network()
        self.optimizer = make(self.model)
        self.transport = MemoryTransport()
        self.handle: Handle = attach(
            self.model, self.optimizer, example_input=data(2)[0], settings=settings(twin_steps=10),
            transport=self.transport, loss_fn=F.cross_entropy, twin_budget=twin_budget, planned_steps=planned_steps,
        )  # fmt: skip
        self.steps = 0

    def closure(self) -> Tensor:
        inputs, labels = data(seed=self.steps)
        self.model.zero_grad()
        loss = F.cross_entropy(self.model(inputs), labels)
        loss.backward()
        return loss

    def train(self, steps: int) -> "Loop":
        for _ in range(steps):
            optimizers = self.optimizer if isinstance(self.optimizer, list) else [self.optimizer]
            if isinstance(optimizers[0], SAM):
                loss = optimizers[0].step(self.closure)
            else:
                loss = self.closure()
                for optimizer in optimizers:
                    optimizer.step()
            self.steps += 1
            self.handle.step(loss=loss.detach(), batch=data(seed=self.steps - 1))
        return self

    def decide(self, kind: str, layer: str) -> tuple[str, str]:
        loads = kind == "load_kernel"
        self.transport.decide(kind, layer=layer, blueprint="parallel_expansion" if loads else None)
        self.train(1)
        outcome = self.transport.records("tamiyo.adaptation.outcomes")[-1]
        return outcome.status.value, outcome.reason


MAKE: dict[str, Callable[[Any], Any]] = {
    "passing": lambda m: Passing(Adam(m.parameters(), 0.01)),
    "imitating": lambda m: Imitating(Adam(m.parameters(), 0.01)),
    "lookahead": lambda m: Lookahead(Adam(m.parameters(), 0.01)),
    "sam": lambda m: SAM(m.parameters(), SGD, lr=0.01),
    "several": lambda m: Several(SGD(m[0].parameters(), 0.1), Adam([*m[3].parameters(), *m[5].parameters()])),
    "list": lambda m: [SGD(m[0].parameters(), 0.1), Adam([*m[3].parameters(), *m[5].parameters()])],
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_run_grows_shrinks_and_resumes(make: Callable[[Any], Any]) -> None:
    loop = Loop(make).train(3)
    assert loop.decide("load_kernel", "0") == ("executed", "")
    assert loop.decide("load_kernel", "3") == ("executed", "")
    assert loop.decide("optimize_parameters", "3") == ("executed", "")
    kernels = [p for name, p in loop.model.named_parameters() if "kernels" in name]
    before = [p.detach().clone() for p in kernels]
    loop.train(6)
    assert len(kernels) == 8
    assert all(not torch.equal(a, b) for a, b in zip(before, kernels, strict=True))
    saved = copy.deepcopy(loop.handle.state_dict())
    again = Loop(make)
    again.handle.load_state_dict(saved)
    again.steps = loop.steps
    if isinstance(loop.optimizer, Lookahead):
        again.optimizer.count = loop.optimizer.count
    loop.train(4)
    again.train(4)
    theirs = dict(again.model.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in loop.model.named_parameters())
    assert loop.decide("unload_kernel", "3")[0] == "executed"
    loop.train(8)
    assert sum("kernels" in name for name, _ in loop.model.named_parameters()) == 4
    assert loop.handle.stats.errors == 0
    loop.handle.detach()


def test_frozen_layers_are_protected() -> None:
    model = network()
    model[3].requires_grad_(False)
    loop = Loop(lambda m: SGD([*m[0].parameters(), *m[3].parameters()], 0.1), model).train(2)
    assert loop.decide("load_kernel", "0") == ("executed", "")
    for layer in ("3", "5"):  # frozen, and in no optimizer
        assert loop.decide("load_kernel", layer)[0] == "refused"


def test_what_cannot_be_slowed_down_is_refused() -> None:
    loop = Loop(lambda m: Rprop(m.parameters())).train(2)
    status, reason = loop.decide("optimize_parameters", "3")
    assert (status, reason.split(":")[0]) == ("refused", "not_scalable")
    assert loop.decide("load_kernel", "3") == ("executed", "")


def test_a_replaced_optimizer_ends_growth(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop(lambda m: Adam(m.parameters())).train(3)
    loop.optimizer = Adam(loop.model.parameters(), fused=True)
    with caplog.at_level(logging.WARNING):
        loop.train(25)
    assert [record.getMessage().split(" for ")[0] for record in caplog.records] == ["Adam has not stepped"]
    status, reason = loop.decide("load_kernel", "3")
    assert (status, reason.split(":")[0]) == ("refused", "optimizer_replaced")
    assert sum("kernels" in name for name, _ in loop.model.named_parameters()) == 0


def test_an_optimizer_of_another_model_is_refused_before_anything_changes() -> None:
    model = network()
    with pytest.raises(ConfigurationError, match="none of the 6 parameters"):
        attach(model, Adam(network().parameters()), example_input=data(2)[0], transport=MemoryTransport())
    assert [type(module).__name__ for module in model][:1] == ["Conv1d"]


def test_a_state_of_another_optimizer_leaves_model_and_optimizer_as_they_are() -> None:
    loop = Loop(lambda m: Adam(m.parameters(), 0.01)).train(2)
    loop.decide("load_kernel", "3")
    saved = copy.deepcopy(loop.handle.state_dict())
    other = Loop(lambda m: SGD(m.parameters(), 0.01)).train(2)
    before = {name: p.detach().clone() for name, p in other.model.named_parameters()}
    with pytest.raises(KernelError, match="the saved state is of Adam, the optimizer is SGD"):
        other.handle.load_state_dict(saved)
    after = dict(other.model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    other.train(3)


def test_accelerate_grows() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    loop = Loop(lambda m: accelerator.prepare(Adam(m.parameters(), 0.01))).train(2)
    assert loop.decide("load_kernel", "3") == ("executed", "")
    loop.train(6)
    assert loop.handle.stats.errors == 0


@pytest.mark.parametrize("kind", ["list", "lookahead"])
def test_a_shadow_twin_trains_with_several_optimizers_and_not_without_lookahead(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop(MAKE[kind], twin_budget=1.0, planned_steps=40).train(3)
    with caplog.at_level(logging.INFO, logger="tamiyo.host._probes"):
        loop.decide("load_kernel", "3")
        loop.train(14)
    messages = [record.getMessage() for record in caplog.records]
    if kind == "list":
        assert any("TwinResult(gain=" in message and "steps=10" in message for message in messages)
    else:
        assert any("Lookahead > Adam cannot be copied" in message for message in messages)
    assert loop.handle.stats.executed == 1
