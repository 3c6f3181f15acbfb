"""Training loops of many kinds, what Tamiyo measures in a step of them, and a slow reference for it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tamiyo.host import LayerSpec, attach
from tamiyo.host._probes.growth_score import GrowthProbe
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.telemetry import LayerHealth
from tamiyo.schemas.topics import LAYER_HEALTH
from tests.support.runs import data, settings

SAMPLED = 3
Batches = list[tuple[Tensor, Tensor]]
Optimize = Callable[..., torch.optim.Optimizer]


@dataclass
class Row:
    """What a frame has about a layer."""

    gradient_norm: float
    update_ratio: float
    growth_score: float | None


def micro_batches(step: int, count: int = 1) -> Batches:
    inputs, labels = data(16, seed=step)
    inputs = inputs * (10.0 if step % 2 else 0.1)  # so that a number of another step is far off
    return list(zip(inputs.chunk(count), labels.chunk(count), strict=True))


class Loop:
    """A training loop; `step` trains on micro-batches, and reports to the handle if there is one."""

    micro = 1

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer
        self.handle: Any = None

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1]) / self.micro

    def report(self, loss: Tensor) -> None:
        if self.handle is not None:
            self.handle.step(loss=loss)

    def step(self, batches: Batches) -> None:
        self.optimizer.zero_grad()
        for batch in batches:
            loss = self.forward(batch)
            loss.backward()  # type: ignore[no-untyped-call]
        self.update()
        self.report(loss)

    def update(self) -> None:
        self.optimizer.step()


class Accumulating(Loop):
    micro = 4


class AccumulatingZeros(Accumulating):
    """Gradients are kept and filled with zeros."""

    def step(self, batches: Batches) -> None:
        for batch in batches:
            loss = self.forward(batch)
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        self.report(loss)


class ReportingMicroBatches(Accumulating):
    """The handle's step is called with each micro-batch."""

    def step(self, batches: Batches) -> None:
        self.optimizer.zero_grad()
        for index, batch in enumerate(batches, start=1):
            loss = self.forward(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            if index == len(batches):
                self.optimizer.step()
            self.report(loss)


class Clearing(Loop):
    """Gradients are gone before the handle's step."""

    def step(self, batches: Batches) -> None:
        loss = self.forward(batches[0])
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.report(loss)


class ClearingLate(Loop):
    """Gradients of the step before are there in the forward pass."""

    def step(self, batches: Batches) -> None:
        loss = self.forward(batches[0])
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.report(loss)


class Clipping(Loop):
    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), 1e-3)
        self.optimizer.step()


class ClippingValues(Loop):
    def update(self) -> None:
        nn.utils.clip_grad_value_(self.model.parameters(), 1e-3)
        self.optimizer.step()


class Scaling(Loop):
    """With torch's gradient scaler."""

    scale = 65536.0

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(model, optimizer)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=self.scale)

    def step(self, batches: Batches) -> None:
        self.optimizer.zero_grad()
        for batch in batches:
            loss = self.forward(batch)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.update()
        self.scaler.update()
        self.report(loss)

    def update(self) -> None:
        self.scaler.step(self.optimizer)


class ScalingOddly(Scaling):
    scale = 1000.0


class ScalingAccumulating(Scaling):
    micro = 4


class ScalingAndClipping(Scaling):
    def update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1e-3)
        self.scaler.step(self.optimizer)


class ScalingByHand(Loop):
    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return super().forward(batch) * 1024

    def update(self) -> None:
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(1024)
        self.optimizer.step()


class Closure(Loop):
    def step(self, batches: Batches) -> None:
        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=False)
            loss = self.forward(batches[0])
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        loss: Any = self.optimizer.step(closure)
        self.report(loss)


class Evaluating(Loop):
    """The network is trained in eval mode."""

    def step(self, batches: Batches) -> None:
        self.model.eval()
        super().step(batches)


class Validating(Loop):
    """Passes in eval mode, with and without gradients, go before the training step."""

    def step(self, batches: Batches) -> None:
        self.model.eval()
        self.model(batches[0][0] * 3)
        self.model.train()
        with torch.no_grad():
            self.model(batches[0][0] * 7)
        super().step(batches)


class Replacing(Loop):
    """The loop puts gradients of its own in place of autograd's."""

    def update(self) -> None:
        for parameter in self.model.parameters():
            assert parameter.grad is not None
            wrong, parameter.grad = parameter.grad, parameter.grad.clone()
            wrong.fill_(torch.nan)
        self.optimizer.step()


class Checkpointing(Loop):
    reentrant = False

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs = batch[0].clone().requires_grad_()  # a reentrant checkpoint needs an input with a gradient
        output: Any = checkpoint(self.model, inputs, use_reentrant=self.reentrant)
        return F.cross_entropy(output, batch[1])


class CheckpointingReentrantly(Checkpointing):
    reentrant = True


class SteppingTwice(Loop):
    """Two updates before the handle's step: the first one is measured."""

    def step(self, batches: Batches) -> None:
        for factor in (1.0, 5.0):
            self.optimizer.zero_grad()
            loss = self.forward((batches[0][0] * factor, batches[0][1]))
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        self.report(loss)


class TwiceEvaluating(torch.optim.SGD):
    """Evaluates its closure twice, as a line search does."""

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            closure()
        return super().step(closure)


sgd = partial(torch.optim.SGD, lr=0.05)
adam = partial(torch.optim.Adam, lr=0.01)
fused = partial(torch.optim.AdamW, lr=0.01, fused=True)
nesterov = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, foreach=True)

LOOPS: dict[str, tuple[type[Loop], Optimize]] = {
    "plain": (Loop, sgd),
    "nesterov": (Loop, nesterov),
    "accumulating": (Accumulating, sgd),
    "accumulating_zeros": (AccumulatingZeros, adam),
    "reporting_micro_batches": (ReportingMicroBatches, sgd),
    "clearing": (Clearing, sgd),
    "clearing_late": (ClearingLate, sgd),
    "clipping": (Clipping, sgd),
    "clipping_values": (ClippingValues, sgd),
    "scaling": (Scaling, sgd),
    "scaling_fused": (Scaling, fused),
    "scaling_oddly": (ScalingOddly, sgd),
    "scaling_oddly_fused": (ScalingOddly, fused),
    "scaling_accumulating": (ScalingAccumulating, sgd),
    "scaling_accumulating_fused": (ScalingAccumulating, fused),
    "scaling_and_clipping": (ScalingAndClipping, sgd),
    "scaling_and_clipping_fused": (ScalingAndClipping, fused),
    "scaling_by_hand": (ScalingByHand, sgd),
    "closure": (Closure, sgd),
    "closure_adam": (Closure, adam),
    "closure_twice": (Closure, partial(TwiceEvaluating, lr=0.05)),
    "evaluating": (Evaluating, sgd),
    "validating": (Validating, sgd),
    "replacing": (Replacing, sgd),
    "checkpointing": (Checkpointing, sgd),
    "checkpointing_reentrantly": (CheckpointingReentrantly, sgd),
    "stepping_twice": (SteppingTwice, sgd),
}


def norm(tensors: Any) -> float:
    return float(torch.cat([t.detach().double().reshape(-1) for t in tensors]).norm())


def reference(model: nn.Module, layers: list[str], inputs: Tensor, labels: Tensor) -> dict[str, Row]:
    """Gradient norm and growth score of the layers, by hand, from a copy of the model."""
    twin = copy.deepcopy(model)
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}

    def watch(layer: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            output.retain_grad()
            seen[layer].append((args[0].detach(), output))

        return hook

    for layer in layers:
        twin.get_submodule(layer).register_forward_hook(watch(layer))
    twin.zero_grad()
    F.cross_entropy(twin(inputs), labels).backward()  # type: ignore[no-untyped-call]
    found = {}
    for layer, calls in seen.items():
        module = twin.get_submodule(layer)
        given = torch.cat([call[0] for call in calls])
        gradient = torch.cat([call[1].grad for call in calls if call[1].grad is not None])
        score = float(GrowthProbe(LayerSpec.of(layer, module, given)).score(given, gradient))
        found[layer] = Row(norm(p.grad for p in module.parameters()), 0.0, score)
    return found


def train(
    loop_of: Callable[[nn.Module], Loop], model: nn.Module, *, shape: tuple[int, ...] = (2, 8)
) -> tuple[dict[str, Row], dict[str, Row]]:
    """Train attached, and a copy without Tamiyo beside it; return what was published and what is right."""
    bare = loop_of(copy.deepcopy(model))
    attached = loop_of(model)
    transport = MemoryTransport()
    dtype = next(model.parameters()).dtype
    # Frames are due in the midst of the last step's micro-batches, and of the step before.
    interval = (SAMPLED - 1) * attached.micro if isinstance(attached, ReportingMicroBatches) else SAMPLED
    attached.handle = attach(
        model,
        attached.optimizer,
        example_input=data(2)[0].to(dtype).reshape(2, *shape),
        settings=settings(sample_interval=interval, growth_interval=interval),
        transport=transport,
    )
    expected: dict[str, Row] = {}
    for step in range(1, SAMPLED + 1):
        batches = [(x.to(dtype).reshape(len(x), *shape), y) for x, y in micro_batches(step, attached.micro)]
        if step == SAMPLED:
            layers = [node.layer_id for node in transport.records("tamiyo.model.topology")[0].layers]
            whole = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
            expected = reference(bare.model, layers, *whole)
            before = copy.deepcopy(bare.model)
        if step == SAMPLED and isinstance(bare, SteppingTwice):
            Loop.step(bare, batches)  # the first of its two updates
        else:
            bare.step(batches)
        attached.step(batches)
    for layer, row in expected.items():
        old, new = (list(m.get_submodule(layer).parameters()) for m in (before, bare.model))
        row.update_ratio = norm(b - a for a, b in zip(old, new, strict=True)) / norm(old)
    assert attached.handle.stats.errors == 0
    (frame,) = [f for f in transport.records(LAYER_HEALTH.name) if not f.final]
    return rows(frame), expected


def rows(frame: LayerHealth) -> dict[str, Row]:
    columns = zip(frame.layer_id, frame.gradient_norm, frame.update_ratio, frame.growth_score, strict=True)
    return {layer: Row(*values) for layer, *values in columns}  # type: ignore[arg-type]


def assert_equal(found: dict[str, Row], expected: dict[str, Row], rel: float = 1e-3) -> None:
    assert set(found) == set(expected)
    for layer, row in expected.items():
        assert found[layer].gradient_norm == pytest.approx(row.gradient_norm, rel=rel)
        assert found[layer].update_ratio == pytest.approx(row.update_ratio, rel=rel)
        assert found[layer].growth_score == pytest.approx(row.growth_score, rel=10 * rel)
