"""Optimizers and schedules of every kind, as loops make them: a kernel joins, is trained, and leaves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
    lr_scheduler,
)  # fmt: skip
from torch.optim.swa_utils import SWALR

from tamiyo.host import attach
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.errors import ConfigurationError
from tests.host.loops.written import Loop, batch, check, mlp

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "momentum": lambda m: SGD(m.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "fused_momentum": lambda m: SGD(m.parameters(), 0.1, momentum=0.9, fused=True),
    "fused_momentum_by_group": lambda m: SGD(
        [{"params": m[0].parameters(), "weight_decay": 0.1}, {"params": m[2:].parameters()}],
        0.1,
        momentum=0.9,
        fused=True,
    ),
    "foreach_momentum": lambda m: SGD(m.parameters(), 0.1, momentum=0.9, foreach=True),
    "fused": lambda m: Adam(m.parameters(), 0.01, fused=True),
    "foreach": lambda m: Adam(m.parameters(), 0.01, foreach=True),
    "fused_adagrad": lambda m: Adagrad(m.parameters(), 0.1, fused=True),
    "amsgrad": lambda m: AdamW(m.parameters(), 0.01, amsgrad=True, foreach=True),
    "maximize": lambda m: AdamW(m.parameters(), 1e-4, maximize=True),
    "rate_in_a_tensor": lambda m: Adam(m.parameters(), torch.tensor(0.01), fused=True),
    "adafactor": lambda m: Adafactor(m.parameters(), 0.01),
    "adadelta": lambda m: Adadelta(m.parameters(), foreach=True),
    "adagrad": lambda m: Adagrad(m.parameters(), foreach=True),
    "adamax": lambda m: Adamax(m.parameters(), foreach=True),
    "asgd": lambda m: ASGD(m.parameters(), foreach=True),
    "nadam": lambda m: NAdam(m.parameters(), foreach=True),
    "radam": lambda m: RAdam(m.parameters(), foreach=True),
    "rmsprop": lambda m: RMSprop(m.parameters(), momentum=0.9, centered=True, foreach=True),
    "rprop": lambda m: Rprop(m.parameters(), foreach=True),
    "named": lambda m: AdamW(m.named_parameters(), 0.01),
    "decayed_and_not": lambda m: AdamW(
        [
            {"params": [p for p in m.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in m.parameters() if p.ndim == 1], "weight_decay": 0.0, "lr": 0.1},
        ],
        0.01,
    ),
    "group_by_parameter": lambda m: SGD([{"params": [p], "lr": 0.01} for p in m.parameters()]),
    "empty_group": lambda m: Adam([{"params": []}, {"params": list(m.parameters())}], 0.01),
}

SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=40),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, min_lr=[1e-5] * len(o.param_groups)),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.CosineAnnealingLR(o, 10)], [4]
    ),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1),
    "by_function": lambda o: lr_scheduler.LambdaLR(o, [lambda epoch: 0.9**epoch]),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "averaging": lambda o: SWALR(o, 0.05),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_a_kernel_and_lets_it_go(name: str, caplog: pytest.LogCaptureFixture) -> None:
    class Own(Loop):
        def optimize(self) -> Any:
            return OPTIMIZERS[name](self.model)

    check(Own, caplog)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_goes_on(name: str, caplog: pytest.LogCaptureFixture) -> None:
    class Scheduled(Loop):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = SCHEDULES[name](self.optimizer)

        def optimize(self) -> Any:
            return SGD(self.model.parameters(), 0.1, momentum=0.9)

        def step(self, number: int) -> Tensor:
            loss = super().step(number)
            self.schedule.step(*([loss.item()] if name == "plateau" else []))
            return loss

    check(Scheduled, caplog)


class Quantized(Optimizer):
    """Keeps its momentum in eight bits and an attribute of its own, as bitsandbytes does."""

    def __init__(self, parameters: Any, lr: float = 0.01) -> None:
        super().__init__(parameters, {"lr": lr})
        self.initialized = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.initialized = True
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["bits"], state["scale"] = torch.zeros(parameter.numel(), dtype=torch.int8), torch.ones(1)
                momentum = 0.9 * state["bits"].float() * state["scale"] + parameter.grad.flatten()
                state["scale"] = momentum.abs().max().clamp_min(1e-12) / 127
                state["bits"] = (momentum / state["scale"]).round().to(torch.int8)
                parameter.add_(momentum.view_as(parameter), alpha=-group["lr"])


class Early(Optimizer):
    """Makes its state when it is made, as schedule-free optimizers do."""

    def __init__(self, parameters: Any, lr: float = 0.01) -> None:
        super().__init__(parameters, {"lr": lr})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["z"] = parameter.detach().clone()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter]["z"].sub_(parameter.grad, alpha=group["lr"])
                    parameter.lerp_(self.state[parameter]["z"], 0.5)


class Demanding(Early):
    """Takes an argument that is not among its defaults, so that nobody else can make one."""

    def __init__(self, parameters: Any, secret: int) -> None:
        super().__init__(parameters)


class Listed(Optimizer):
    """Keeps a list of the parameters that it was made with."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01})
        self.all = [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter in self.all:
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.01)


class Beside(Optimizer):
    """Keeps buffers in a list beside the parameters of each group."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01})
        for group in self.param_groups:
            group["buffers"] = [torch.zeros_like(parameter) for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter, buffer in zip(group["params"], group["buffers"], strict=True):
                buffer.mul_(0.9).add_(parameter.grad)
                parameter.sub_(buffer, alpha=0.01)


class Flat(Optimizer):
    """Keeps one vector for all parameters."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01})
        self.vector = torch.zeros(sum(p.numel() for group in self.param_groups for p in group["params"]))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.vector.mul_(0.9).add_(torch.cat([p.grad.flatten() for p in parameters]))
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(parameters) - 0.01 * self.vector, parameters)


@pytest.mark.parametrize("kind", [Quantized, Early])
def test_optimizers_of_other_libraries_take_kernels(kind: type[Optimizer], caplog: pytest.LogCaptureFixture) -> None:
    class Foreign(Loop):
        def optimize(self) -> Any:
            return kind(self.model.parameters(), lr=0.01)

    check(Foreign, caplog)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: Demanding(p, 7), "with a new parameter its step fails"),
        (Listed, "its step leaves out parameters that have joined"),
        (Beside, "with a new parameter its step fails"),
        (Flat, "with a new parameter its step fails"),
    ],
)
def test_an_optimizer_that_cannot_take_kernels_is_refused_and_stays_as_it_is(
    make: Callable[[Any], Optimizer], reason: str
) -> None:
    model = mlp()
    optimizer = make(model.parameters())
    # A schedule puts a step of its own on the optimizer, which must not be called for a trial.
    schedule = lr_scheduler.StepLR(optimizer, 3)
    values = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    with pytest.raises(ConfigurationError, match=reason):
        attach(model, optimizer, example_input=torch.zeros(2, 8), transport=MemoryTransport())
    assert all(torch.equal(a, b) for a, b in zip(values, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(group["params"]) for group in optimizer.param_groups] == [6]
    F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    schedule.step()


def test_an_optimizer_whose_step_needs_more_is_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    class Asking(SGD):
        """Needs a closure."""

        def step(self, closure: Any = None) -> Any:
            if closure is None:
                raise RuntimeError("a closure is needed")
            return super().step(closure)

    class Closed(Loop):
        def optimize(self) -> Any:
            return Asking(self.model.parameters(), 0.1)

        def step(self, number: int) -> Tensor:
            def closure() -> Tensor:
                self.optimizer.zero_grad()
                loss = self.loss(*batch(number))
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            loss: Tensor = self.optimizer.step(closure)
            return loss

    check(Closed, caplog)


class Adversaries(nn.Module):
    """Two networks that train against each other."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.critic = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))

    def forward(self, noise: Tensor) -> Tensor:
        output: Tensor = self.critic(self.generator(noise))
        return output


@pytest.mark.parametrize("layer", ["generator.0", "critic.0"])
def test_adversaries_with_an_optimizer_each(layer: str, caplog: pytest.LogCaptureFixture) -> None:
    class Adversarial(Loop):
        model: Any

        def make(self) -> nn.Module:
            self.layer = layer
            return Adversaries()

        def optimize(self) -> Any:
            return [Adam(self.model.generator.parameters(), 0.01), Adam(self.model.critic.parameters(), 0.01)]

        def step(self, number: int) -> Tensor:
            real, _ = batch(number)
            noise, _ = batch(1000 + number)
            forge, judge = self.optimizer
            judge.zero_grad()
            forged = self.model.generator(noise).detach()
            mixed = ((real + forged) / 2).requires_grad_()
            (slope,) = torch.autograd.grad(self.model.critic(mixed).sum(), mixed, create_graph=True)
            penalty = (slope.norm(dim=1) - 1).square().mean()
            loss: Tensor = self.model.critic(forged).mean() - self.model.critic(real).mean() + penalty
            loss.backward()  # type: ignore[no-untyped-call]
            judge.step()
            forge.zero_grad()
            (-self.model(noise).mean()).backward()
            forge.step()
            return loss

    check(Adversarial, caplog)


def test_a_sparse_optimizer_beside_a_dense_one(caplog: pytest.LogCaptureFixture) -> None:
    class Sparse(Loop):
        example = torch.zeros(2, 5, dtype=torch.long)
        model: Any

        def make(self) -> nn.Module:
            return nn.Sequential(nn.EmbeddingBag(10, 8, sparse=True), nn.Linear(8, 2))

        def optimize(self) -> Any:
            return [SparseAdam(self.model[0].parameters()), Adam(self.model[1].parameters())]

        def step(self, number: int) -> Tensor:
            tokens = torch.randint(10, (4, 5), generator=torch.Generator().manual_seed(number))
            for optimizer in self.optimizer:
                optimizer.zero_grad()
            loss = self.loss(tokens, tokens[:, 0] % 2)
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in self.optimizer:
                optimizer.step()
            return loss

    check(Sparse, caplog)
