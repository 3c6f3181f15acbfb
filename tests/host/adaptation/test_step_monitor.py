"""An optimizer that the loop no longer steps is noticed; skipped and accumulated steps are not mistaken for that."""

import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from tamiyo.host._adaptation.growing_optimizer import GrowingOptimizer
from tamiyo.host._adaptation.step_monitor import CHANGES, STEPS
from tamiyo.schemas.errors import AdaptationRefused

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def train(net: nn.Module, optimizer: Optimizer | None, growing: GrowingOptimizer, steps: int = 1) -> None:
    for _ in range(steps):
        if optimizer is not None:
            optimizer.zero_grad()
            (net(X) - 1.0).square().mean().backward()
            optimizer.step()
        growing.complete_step()


REPLACEMENTS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, 0.01),
    "adam": lambda p: Adam(p),
    "adam_loop": lambda p: Adam(p, foreach=False),
    "adam_fused": lambda p: Adam(p, fused=True),
}


@pytest.mark.parametrize("make", REPLACEMENTS.values(), ids=REPLACEMENTS)
def test_a_replaced_optimizer_is_reported_once_and_growth_refused(
    make: Callable[[Any], Optimizer], caplog: pytest.LogCaptureFixture
) -> None:
    net = network()
    attached = SGD(net.parameters(), 0.01)
    growing = GrowingOptimizer(attached, net)
    train(net, attached, growing, 3)
    other = make(net.parameters())
    with caplog.at_level(logging.WARNING):
        train(net, other, growing, CHANGES * 2)
        refusal = growing.refusal(net[0].parameters())
        assert refusal is not None
        assert refusal.limit == "optimizer_replaced"
        with pytest.raises(AdaptationRefused, match="detach and attach with the new"):
            growing.add(nn.Linear(2, 2), beside=net[0].parameters())
        with pytest.raises(AdaptationRefused, match="has not stepped for"):
            growing.scale_learning_rate(net[0].parameters(), 0.5)
        train(net, other, growing, CHANGES * 2)
    assert [record.getMessage().split(" for ")[0] for record in caplog.records] == ["SGD has not stepped"]
    assert len(attached.param_groups[0]["params"]) == 4

    train(net, attached, growing)  # the loop returns to it
    assert growing.refusal(net[0].parameters()) is None


def test_only_the_layers_of_the_replaced_one_of_several_are_refused() -> None:
    net = network()
    first, second = SGD(net[0].parameters(), 0.01), SGD(net[2].parameters(), 0.01)
    growing = GrowingOptimizer([first, second], net)
    other = SGD(net[2].parameters(), 0.01)
    for _ in range(CHANGES * 2):
        for optimizer in (first, other):
            optimizer.zero_grad()
        (net(X) - 1.0).square().mean().backward()
        first.step()
        other.step()
        growing.complete_step()
    assert growing.refusal(net[0].parameters()) is None
    assert growing.refusal(net[2].parameters()) is not None


def test_skipped_and_accumulated_steps_are_no_replacement(caplog: pytest.LogCaptureFixture) -> None:
    net = network()
    optimizer = Adam(net.parameters())
    growing = GrowingOptimizer(optimizer, net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10_000)
    for count in range(90):  # infinite gradients for a while: the scaler does not step
        loss = (net(X) - 1.0).square().mean() * (float("inf") if count < 60 else 1.0)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        growing.complete_step()
    for count in range(1, 601):  # 300 batches a step, and a checkpoint loaded between
        (net(X) - 1.0).square().mean().backward()
        if count == 150:
            net.load_state_dict(network().state_dict())
        if count % 300 == 0:
            optimizer.step()
        growing.complete_step()
        assert growing.refusal(net[0].parameters()) is None
    assert not caplog.records


def test_a_loop_that_never_steps_it_is_noticed_even_if_nothing_seems_to_change() -> None:
    """As in a captured CUDA graph, or with an optimizer that writes to `parameter.data`."""
    net = network()
    growing = GrowingOptimizer(SGD(net.parameters(), 0.01), net)
    train(net, None, growing, STEPS - 1)
    assert growing.refusal(net[0].parameters()) is None
    train(net, None, growing, 1)
    assert growing.refusal(net[0].parameters()) is not None


def test_no_model_is_kept_alive() -> None:
    net = network()
    optimizer = SGD(net.parameters(), 0.01)
    growing = GrowingOptimizer(optimizer, net)
    train(net, optimizer, growing)
    alive = weakref.ref(net[0].weight)
    del net, optimizer, growing
    gc.collect()
    assert alive() is None
    other = network()
    train(other, SGD(other.parameters(), 0.01), GrowingOptimizer(SGD(other.parameters(), 0.01)))


class Accumulating(SGD):
    """A torch optimizer by class that steps the one inside every 100th time only."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer.param_groups, lr=0.1)
        self.inner, self.count = optimizer, 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        return self.inner.step(closure) if self.count % 100 == 0 else None


def test_a_step_of_the_wrapper_is_no_step_of_another_optimizer() -> None:
    net = network()
    wrapper = Accumulating(Adam(net.parameters()))
    growing = GrowingOptimizer(wrapper, net)
    for _ in range(250):
        (net(X) - 1.0).square().mean().backward()
        wrapper.step()
        growing.complete_step()
        assert growing.refusal(net[0].parameters()) is None
