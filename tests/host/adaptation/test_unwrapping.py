"""The torch optimizer that steps the model's parameters is found inside wrappers; what is none is refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, lr_scheduler

from tamiyo.host._adaptation.unwrapping import unwrap
from tamiyo.schemas.errors import ConfigurationError
from tests.host.adaptation.wrapped_optimizers import SAM, Duck, FP16Optimizer, Imitating, Lookahead, Passing, Several


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "none": lambda p: Adam(p),
    "passing": lambda p: Passing(Adam(p)),
    "imitating": lambda p: Imitating(Adam(p)),
    "lookahead": lambda p: Lookahead(Adam(p)),
    "twice": lambda p: Passing(Lookahead(Adam(p))),
    "sam": lambda p: SAM(p, Adam, lr=1e-3),
    "slots": lambda p: Slotted(Adam(p)),
}


class Slotted:
    __slots__ = ("_optimizer",)

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    @property
    def param_groups(self) -> Any:
        return self._optimizer.param_groups

    def step(self) -> None:
        self._optimizer.step()


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_optimizer_inside_is_found_and_its_hooks_fire(wrap: Callable[[Any], Any]) -> None:
    net = network()
    given = wrap(net.parameters())
    (chain,) = unwrap(given, net)
    assert type(chain.optimizer) is Adam
    assert [id(p) for p in chain.parameters] == [id(p) for p in net.parameters()]
    assert (chain.wrappers or (given,))[0] is given
    calls: list[str] = []
    chain.optimizer.register_step_post_hook(lambda *_: calls.append("stepped"))

    def closure() -> torch.Tensor:
        given.param_groups[0]["params"][0].grad = None
        loss = net(torch.ones(2, 4)).sum()
        loss.backward()
        return loss

    if isinstance(given, SAM):
        given.step(closure)
    else:
        closure()
        given.step()
    assert calls == ["stepped"]


def test_the_optimizer_of_accelerate_is_unwrapped() -> None:
    accelerate = pytest.importorskip("accelerate")
    net = network()
    prepared, optimizer = accelerate.Accelerator(cpu=True).prepare(net, Adam(net.parameters()))
    (chain,) = unwrap(optimizer, prepared)
    assert chain.name == "AcceleratedOptimizer > Adam"


def test_several_optimizers_are_found_in_order_and_once() -> None:
    net = network()
    first, second = SGD(net[0].parameters(), 0.1), Adam(net[2].parameters())
    for given in ([first, second], (Passing(first), second), Several(first, second), [first, Several(first, second)]):
        assert [chain.optimizer for chain in unwrap(given, net)] == [first, second]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda net: None, "got None"),
        (lambda net: Adam, "Adam is a class"),
        (lambda net: net, "Sequential is a module"),
        (lambda net: lr_scheduler.StepLR(Adam(net.parameters()), 1), "StepLR is a learning rate scheduler: pass its"),
        (lambda net: torch.amp.GradScaler("cpu"), "GradScaler is a gradient scaler"),
        (lambda net: {"a": Adam(net.parameters())}, "a dict is no optimizer"),
        (lambda net: [[Adam(net.parameters())]], "the list contains a list"),
        (lambda net: [Adam(net.parameters()), None], "got None"),
        (lambda net: [], "an empty list"),
        (lambda net: net.parameters(), "generator is no optimizer"),
        (lambda net: partial(Adam, net.parameters()), "partial is no optimizer"),
        (lambda net: "adam", "str is no optimizer"),
        (lambda net: Duck(net.parameters()), "Duck has no step hooks"),
        (lambda net: Adam(network().parameters()), "none of the 4 parameters that Adam steps is the model's"),
        (lambda net: Passing(Adam(network().parameters())), "none of the 4 parameters that Passing > Adam steps"),
        (lambda net: [Adam(net.parameters()), SGD(network().parameters(), 0.1)], "parameters that SGD steps"),
        (lambda net: FP16Optimizer(Adam(net.half().parameters())), "FP16Optimizer > Adam steps float32 copies"),
        (lambda net: FP16Optimizer(Adam(net[0].bfloat16().parameters())), "steps float32 copies"),
    ],
)
def test_what_cannot_be_attached_is_refused_with_the_reason(make: Callable[[nn.Module], Any], reason: str) -> None:
    net = network()
    with pytest.raises(ConfigurationError, match=reason):
        unwrap(make(net), net)


def test_parameters_outside_the_model_are_no_obstacle() -> None:
    net = network()
    weights = nn.Parameter(torch.zeros(2))
    optimizer = Adam([*net[0].parameters(), weights])
    assert unwrap(optimizer, net)[0].optimizer is optimizer
