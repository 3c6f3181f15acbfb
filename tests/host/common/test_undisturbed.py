"""Attaching and measuring changes nothing in a run: bit by bit, and without waiting for the device."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tamiyo.host import Handle, attach
from tamiyo.host._common.undisturbed import undisturbed
from tamiyo.host._topology.tracing import execute
from tamiyo.host.testing import MemoryTransport
from tests.support.runs import settings
from tests.support.synchronisations import Elsewhere, Synchronisations


class Noisy(nn.Module):
    """Draws from every random stream in train and eval mode, counts its calls, and keeps statistics in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(16, momentum=0.3)
        self.dropout = nn.Dropout(0.3)
        self.second = nn.Linear(16, 2)
        self.register_buffer("seen", torch.zeros(16))
        self.calls = 0
        self.history: list[int] = []
        self.last: Tensor | None = None
        self.average = torch.zeros(())
        self.own = torch.Generator().manual_seed(1)
        self.own_numpy = np.random.default_rng(1)
        self.own_legacy = np.random.RandomState(1)
        self.own_python = random.Random(1)
        self.sometimes = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.history.append(self.calls)
        x = x + 0.1 * torch.randn_like(x) + float(np.random.rand()) * 0.1 + random.random() * 0.1
        x = x + 0.1 * torch.randn(x.shape, generator=self.own) + float(self.own_numpy.random()) * 0.1
        x = x * (1 + 0.1 * self.own_legacy.rand()) * (1 + 0.1 * self.own_python.random()) * (1 + 0.01 * self.calls)
        x = self.first(x)
        with torch.no_grad():
            self.seen.lerp_(x.mean(dim=0), 0.5)  # type: ignore[operator]
            self.average.add_(x.mean())
        x = F.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True) + self.seen + self.average
        if self.last is not None:
            x = x + 0.01 * self.last.mean()
        self.last = x.detach()
        result: Tensor = self.second(self.dropout(self.norm(x).relu()))
        return result


def streams() -> tuple[Any, ...]:
    state: Any = np.random.get_state()
    return torch.get_rng_state().tolist(), state[1].tolist(), state[2], random.getstate()


def losses(attached: bool, steps: int = 12, **more: Any) -> tuple[list[Tensor], dict[str, Tensor], Noisy, Any]:
    """Train from the same seeds, with everything measured as often as possible or without Tamiyo."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model = Noisy()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    held_out = torch.ones(4, 8), torch.zeros(4, dtype=torch.long)
    handle: Handle | None = None
    if attached:
        handle = attach(
            model, optimizer, example_input=torch.zeros(4, 8), loss_fn=F.cross_entropy, held_out=held_out,
            settings=settings(sample_interval=1, growth_interval=1, contribution_interval=1, **more),
            transport=MemoryTransport(),
        )  # fmt: skip
        # A held-out loss is measured only of a grown network: measure it at each step, whose network has not grown.
        assert handle._sampler._held_out is not None
    found = []
    for _ in range(steps):
        inputs = torch.randn(16, 8)
        loss = F.cross_entropy(model(inputs), (inputs[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(loss.detach())
        if handle is not None:
            handle.step(loss=loss)
            held = handle._sampler._held_out
            assert held is not None
            first = held.loss()
            assert first is not None
            assert held.loss() == first
            handle._sampler._latency.measure(4)
    after = streams()
    if handle is not None:
        handle.close()
        assert handle.stats.errors == 0
    return found, {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}, model, after


def test_a_run_has_the_same_bits_attached_and_not() -> None:
    bare, bare_state, bare_model, bare_streams = losses(False)
    found, state, model, after = losses(True)
    assert all(torch.equal(a, b) for a, b in zip(bare, found, strict=True))
    shared = {name.replace(".base.", "."): value for name, value in state.items() if "_extra_state" not in name}
    assert set(shared) == set(bare_state)
    assert all(torch.equal(value, shared[name]) for name, value in bare_state.items())
    assert (model.calls, model.history, model.training) == (bare_model.calls, bare_model.history, True)
    assert after == bare_streams


def test_a_run_beside_the_training_leaves_no_trace() -> None:
    torch.manual_seed(0)
    model = Noisy()
    model.dropout.eval()
    model(torch.ones(4, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn, last = streams(), model.last
    outputs = []
    for _ in range(2):
        with undisturbed(model):
            model.added = 1  # type: ignore[assignment]
            outputs.append(model(torch.ones(4, 8)))
    assert torch.equal(*outputs)
    assert not outputs[0].requires_grad
    assert streams() == drawn
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.calls, model.history, model.last is last) == (1, [1], True)
    assert not hasattr(model, "added")
    assert [module.training for module in model.children()] == [True, True, False, True]


def test_a_run_that_fails_leaves_no_trace_either() -> None:
    model = Noisy()
    drawn = streams()
    with pytest.raises(RuntimeError), undisturbed(model):
        model(torch.ones(4, 9))
    assert streams() == drawn
    assert (model.calls, model.training) == (0, True)


class Merging(nn.Linear):
    """Merges its weights when it is put into eval mode, as some adapters do."""

    def train(self, mode: bool = True) -> "Merging":
        if not mode and self.training:
            self.weight.data.mul_(3.0)
        return super().train(mode)


def test_modules_are_not_asked_to_change_their_mode() -> None:
    model = nn.Sequential(Merging(4, 4), nn.Linear(4, 2))
    before = [p.detach().clone() for p in model.parameters()]
    execute(model, {"1": model[1]}, torch.zeros(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert model[0].training


def counted(attached: bool, steps: int = 6) -> Counter[str]:
    """Count over unsampled steps, with what a loop can pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters())
    handle: Handle | None = None
    if attached:
        handle = attach(
            model, optimizer, example_input=torch.zeros(2, 8), loss_fn=F.cross_entropy,
            held_out=(torch.ones(4, 8), torch.zeros(4, dtype=torch.long)),
            settings=settings(sample_interval=1000), transport=MemoryTransport(),
        )  # fmt: skip
    inputs, labels = torch.randn(16, 8), torch.zeros(16, dtype=torch.long)
    with Synchronisations() as seen:
        for _ in range(steps):
            logits = model(inputs)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if handle is not None:
                accuracy = (logits.argmax(dim=1) == labels).float().mean()
                handle.step(
                    loss=loss.unsqueeze(0).expand(3), accuracy=accuracy.as_subclass(Elsewhere), batch=(inputs, labels)
                )
    return seen.counts


def test_unsampled_steps_do_not_wait_for_the_device() -> None:
    assert counted(True) == counted(False)


@pytest.mark.parametrize(
    "read",
    [
        lambda t: t.sum().item(), lambda t: float(t.sum()), lambda t: bool(t.sum() > 0), lambda t: t.tolist(),
        lambda t: t.numpy(), lambda t: t.nonzero(), lambda t: t[t > 0], lambda t: t.to("meta"), lambda t: np.asarray(t),
    ],
)  # fmt: skip
def test_every_way_to_read_a_tensor_is_counted(read: Any) -> None:
    with Synchronisations() as seen:
        read(torch.ones(3))
    assert sum(seen.counts.values()) >= 1
