"""Shortened steps equal steps with a smaller lr, or the request is refused."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from tamiyo.host._adaptation.growing_optimizer import GrowingOptimizer
from tamiyo.schemas.errors import AdaptationRefused
from tests.host.adaptation.wrapped_optimizers import Lookahead, Passing

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


class DecayingSGD(SGD):
    """Overrides `step` and calls its parent's, so that the hooks are called twice."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 - group["lr"] * 0.1)
        return loss


class Renamed(Adam):
    """Its step is Adam's."""


SCALABLE: dict[str, Callable[[Any, float], Optimizer]] = {
    "sgd": lambda p, lr: SGD(p, lr, momentum=0.9, weight_decay=0.1),
    "sgd_maximize": lambda p, lr: SGD(p, lr, maximize=True),
    "adam": lambda p, lr: Adam(p, lr),
    "adam_tensor_lr": lambda p, lr: Adam(p, torch.tensor(lr), capturable=False, foreach=False),
    "adam_fused": lambda p, lr: Adam(p, lr, fused=True, weight_decay=0.1),
    "renamed": lambda p, lr: Renamed(p, lr),
    "adamw_foreach": lambda p, lr: torch.optim.AdamW(p, lr, foreach=True, amsgrad=True),
    "adadelta": lambda p, lr: torch.optim.Adadelta(p, lr),
    "adagrad": lambda p, lr: torch.optim.Adagrad(p, lr, lr_decay=0.1),
    "adamax": lambda p, lr: torch.optim.Adamax(p, lr),
    "nadam": lambda p, lr: torch.optim.NAdam(p, lr, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": lambda p, lr: torch.optim.RAdam(p, lr),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr, momentum=0.5, centered=True),
}
LOOPS = ["plain", "closure", "scaler", "wrapped"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def loss(net: nn.Module) -> Tensor:
    return (net(X) - 1.0).square().mean()


def step(net: nn.Module, optimizers: list[Optimizer], loop: str) -> None:
    if loop == "closure":

        def closure() -> Tensor:
            net.zero_grad()
            value = loss(net)
            value.backward()
            return value

        for optimizer in optimizers:
            if optimizer is not optimizers[0]:  # one gradient for all of them, as for a single one
                optimizer.step()
            else:
                optimizer.step(closure)
        return
    net.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=loop == "scaler")
    scaler.scale(loss(net)).backward()
    for optimizer in optimizers:
        scaler.step(optimizer)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("make", SCALABLE.values(), ids=SCALABLE)
def test_a_scaled_layer_learns_as_with_an_lr_of_its_own(make: Callable[[Any, float], Optimizer], loop: str) -> None:
    scaled, plain = network(), network()
    lr = 0.02
    optimizer = make([{"params": scaled[0].parameters()}, {"params": scaled[2].parameters(), "lr": lr / 2}], lr)
    references = [make(plain[0].parameters(), lr * 0.25), make(plain[2].parameters(), lr / 2)]
    growing = GrowingOptimizer(Passing(optimizer) if loop == "wrapped" else optimizer, scaled)
    growing.scale_learning_rate(scaled[0].parameters(), 0.5)
    assert growing.scale_learning_rate(scaled[0].parameters(), 0.5) == 0.25
    assert growing.learning_rate(scaled[0].weight) == pytest.approx(lr * 0.25)
    assert growing.learning_rate(scaled[2].weight) == pytest.approx(lr / 2)
    for _ in range(6):
        step(scaled, [Passing(optimizer) if loop == "wrapped" else optimizer], loop)
        step(plain, references, loop)
        growing.complete_step()
    for mine, reference in zip(scaled.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, reference, atol=2e-6)
    assert not torch.allclose(scaled[0].weight, network()[0].weight, atol=1e-5)


REFUSED: dict[str, Callable[[Any], Optimizer]] = {
    "rprop": lambda p: torch.optim.Rprop(p),
    "asgd": lambda p: torch.optim.ASGD(p),
    "adafactor": lambda p: torch.optim.Adafactor(p),
    "overridden": lambda p: DecayingSGD(p, 0.1),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_steps_that_are_not_proportional_to_lr_are_not_scaled(make: Callable[[Any], Optimizer]) -> None:
    net = network()
    growing = GrowingOptimizer(make(net.parameters()), net)
    with pytest.raises(AdaptationRefused, match="not known to be proportional to lr") as refused:
        growing.scale_learning_rate(net[0].parameters(), 0.5)
    assert refused.value.limit == "not_scalable"
    assert growing.learning_rate(net[0].weight) == growing.learning_rate(net[2].weight)


def test_every_optimizer_of_torch_is_scaled_or_refused_as_its_step_demands() -> None:
    """Measured: with half the lr, five further steps move half as far if, and only if, the class is proportional."""
    for name, kind in vars(torch.optim).items():
        if not inspect.isclass(kind) or name in ("Optimizer", "LBFGS", "SparseAdam"):
            continue
        moved = []
        for factor in (1.0, 0.5):
            parameter = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
            optimizer = kind([parameter], lr=0.3)
            (group,) = optimizer.param_groups
            if "weight_decay" in group:
                group["weight_decay"] = 0.0
            for count in range(10):
                if count == 5:
                    before = parameter.detach().clone()
                    group["lr"] *= factor
                # The gradient does not depend on the values, so that only the step does on lr.
                parameter.grad = torch.tensor([[1.0, -2.0], [0.1, count - 4.5]], dtype=torch.float64)
                optimizer.step()
            moved.append(parameter.detach() - before)
        proportional = torch.allclose(moved[0], 2 * moved[1], rtol=1e-4, atol=1e-9)
        net = network()
        matrices = [net[0].weight] if name == "Muon" else list(net.parameters())
        growing = GrowingOptimizer([kind(matrices), SGD(net[2].parameters(), 0.1)], net)
        try:
            growing.scale_learning_rate([net[0].weight], 0.5)
        except AdaptationRefused:
            assert not proportional, name
        else:
            assert proportional, name


def test_hooks_called_twice_shorten_once() -> None:
    net, plain = network(), network()
    optimizer = DecayingSGD(net.parameters(), 0.1)
    SGD(network().parameters(), 0.1)  # its construction hooks SGD.step too
    growing = GrowingOptimizer(optimizer, net)
    (scaler,) = growing._scalers
    scaler.replace(dict.fromkeys(net[0].parameters(), 0.5))
    step(net, [optimizer], "plain")
    step(plain, [DecayingSGD(plain.parameters(), 0.1)], "plain")
    start = network()
    for index, scale in ((0, 0.5), (2, 1.0)):
        moved = net[index].weight - start[index].weight
        assert torch.allclose(moved, scale * (plain[index].weight - start[index].weight), atol=1e-6)


def test_a_step_that_raises_leaves_nothing_behind() -> None:
    net = network()
    optimizer = SGD(net.parameters(), 0.1)
    growing = GrowingOptimizer(optimizer, net)
    growing.scale_learning_rate(net[0].parameters(), 0.5)

    def fail() -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(fail)
    growing.complete_step()
    before = net[0].weight.detach().clone()
    step(net, [optimizer], "plain")
    assert torch.allclose(net[0].weight.detach() - before, -0.05 * net[0].weight.grad, atol=1e-7)


def test_an_error_while_shortening_stays_out_of_the_users_step(caplog: pytest.LogCaptureFixture) -> None:
    net = network()
    optimizer = SGD(net.parameters(), 0.1)
    growing = GrowingOptimizer(optimizer, net)
    growing.scale_learning_rate(net[0].parameters(), 0.5)
    optimizer.register_step_pre_hook(lambda *_: None)

    def shrink() -> Tensor:  # the user exchanges a weight's storage in the middle of a step
        net[0].weight.data = torch.zeros(6, 9)
        net.zero_grad()
        return torch.zeros(())

    optimizer.step(shrink)
    assert "slowed layers learn at their full rate again" in caplog.text


def test_lookahead_around_scaled_steps_equals_lookahead_around_a_smaller_lr() -> None:
    net, plain = network(), network()
    mine = Lookahead(SGD([{"params": net[0].parameters()}, {"params": net[2].parameters()}], 0.1))
    theirs = Lookahead(SGD([{"params": plain[0].parameters(), "lr": 0.05}, {"params": plain[2].parameters()}], 0.1))
    GrowingOptimizer(mine, net).scale_learning_rate(net[0].parameters(), 0.5)
    for _ in range(7):
        step(net, [mine], "plain")
        step(plain, [theirs], "plain")
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(net.parameters(), plain.parameters(), strict=True))
