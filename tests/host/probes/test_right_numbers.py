"""Gradient norm, update ratio and growth score of a sampled step, against a slow reference, in many kinds of loops."""

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
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._probes import gradients
from tamiyo.host._probes.growth_score import GrowthProbe
from tamiyo.host._probes.overhead import OverheadMeter
from tamiyo.host._probes.probes import Probes
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.telemetry import LayerHealth
from tamiyo.schemas.topics import KERNEL_PERFORMANCE, LAYER_HEALTH
from tests.support.runs import data, network, settings

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


@pytest.mark.parametrize("name", list(LOOPS))
def test_numbers_are_those_of_the_step_in_every_loop(name: str) -> None:
    kind, optimize = LOOPS[name]
    found, expected = train(lambda model: kind(model, optimize(model.parameters())), network())
    assert_equal(found, expected)


def transposed() -> nn.Module:
    """Parameters that are views of a transposed matrix, or not contiguous in another way."""
    model = network()
    for name in ("3", "5"):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    layer = model.get_submodule("0")
    assert isinstance(layer, nn.Conv1d)
    wide = torch.zeros(3, 2, 6)
    wide[:, :, ::2] = layer.weight.detach()
    layer.weight = nn.Parameter(wide[:, :, ::2])
    return model


def channels_last() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))
    return model.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("optimize", [sgd, adam])
@pytest.mark.parametrize("model", [transposed(), channels_last()])
def test_the_layout_of_parameters_does_not_matter(model: nn.Module, optimize: Optimize) -> None:
    shape = (4, 2, 2) if isinstance(model.get_submodule("0"), nn.Conv2d) else (2, 8)
    found, expected = train(lambda m: Loop(m, optimize(m.parameters())), copy.deepcopy(model), shape=shape)
    assert_equal(found, expected)


def test_the_values_measured_stand_for_those_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "MAX_PARAMETERS", 10)
    model = nn.Sequential(nn.Linear(16, 4))
    layer = model.get_submodule("0")
    assert isinstance(layer, nn.Linear)
    nn.init.constant_(layer.weight, 2.0)
    nn.init.constant_(layer.bias, 1.0)
    trained = Trained(model, torch.optim.Adam(model.parameters(), lr=0.01, eps=0.0), torch.ones(2, 16))
    trained.step(model(torch.ones(2, 16)).sum())
    # The first step of Adam changes every value by lr.
    assert trained.frames[0].update_ratio == [pytest.approx(0.01 * (68 / (4 * 64 + 4)) ** 0.5, rel=1e-4)]


def test_thinned_values_are_views_that_represent_the_parameter_in_any_layout() -> None:
    values = torch.arange(2.0 * 700 * 900)
    for parameter in (
        values, values.reshape(700, 1800), values.reshape(700, 1800).t(), values.reshape(1, 700, 2, 900),
        values.reshape(2, 700, 30, 30).contiguous(memory_format=torch.channels_last), values[:1].expand(10**6),
    ):  # fmt: skip
        part = gradients._part(nn.Parameter(parameter))
        assert part.numel() <= gradients.MAX_PARAMETERS
        assert part.numel() > gradients.MAX_PARAMETERS / 4
        assert part.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)])
def test_every_precision_has_the_numbers_of_its_own_arithmetic(dtype: torch.dtype, rel: float) -> None:
    found, expected = train(lambda model: Loop(model, sgd(model.parameters())), network().to(dtype))
    assert_equal(found, expected, rel)


class Casting(Loop):
    """Under autocast, the handle's step included."""

    def step(self, batches: Batches) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            super().step(batches)


def test_autocast_does_not_reach_the_measurements() -> None:
    found, expected = train(lambda model: Casting(model, sgd(model.parameters())), network())
    single, _ = train(lambda model: Loop(model, sgd(model.parameters())), network())
    for layer, row in expected.items():  # the reference is in single precision
        assert found[layer].gradient_norm == pytest.approx(row.gradient_norm, rel=0.02)
        assert found[layer].growth_score == pytest.approx(single[layer].growth_score, rel=0.1)


class Shared(nn.Module):
    """A layer that runs twice, and one whose weight is another's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)
        self.tied = nn.Linear(16, 16)
        self.tied.weight = self.inner.weight
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x).tanh()
        x = self.inner(x).tanh()
        return self.head(self.tied(x).tanh())


@pytest.mark.parametrize("kind", [Loop, Accumulating])
def test_layers_that_run_twice_and_tied_weights_count_all_their_gradients(kind: type[Loop]) -> None:
    torch.manual_seed(0)
    found, expected = train(lambda model: kind(model, sgd(model.parameters())), Shared(), shape=(16,))
    assert_equal(found, expected)


class Ragged(nn.Module):
    """A layer that runs on whole sequences and on their means."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.inner(x).mean(dim=1)))


def test_calls_on_other_shapes_are_represented_by_the_first() -> None:
    torch.manual_seed(0)
    model = Ragged()
    transport = MemoryTransport()
    optimizer = sgd(model.parameters())
    handle = attach(
        model, optimizer, example_input=data(2)[0],
        settings=settings(sample_interval=1, growth_interval=1), transport=transport,
    )  # fmt: skip
    loss = F.cross_entropy(model(data()[0]), data()[1])
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    handle.step(loss=loss)
    (frame,) = transport.records(LAYER_HEALTH.name)
    assert handle.stats.errors == 0
    assert all(score is not None and score > 0 for score in frame.growth_score)


class Trained:
    """A network of `network()`'s layers, trained by a loop of the test's own, sampled at every step."""

    def __init__(self, model: nn.Module, optimizer: Any, example: Tensor | None = None, **more: Any) -> None:
        self.model = model
        self.optimizer = optimizer
        self.transport = MemoryTransport()
        self.handle = attach(
            model,
            optimizer,
            example_input=data(2)[0] if example is None else example,
            settings=settings(**{"sample_interval": 1, "growth_interval": 1} | more),
            transport=self.transport,
        )

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.handle.step(loss=loss)

    @property
    def frames(self) -> list[LayerHealth]:
        return self.transport.records(LAYER_HEALTH.name)


@pytest.mark.parametrize(
    ("module", "shape", "outputs"),
    [(nn.Linear(8, 4), (8,), 4), (nn.Conv1d(3, 4, 3, padding=1), (3, 8), 32), (nn.Conv2d(3, 4, 3), (3, 8, 8), 144)],
)
def test_an_input_without_a_batch_is_a_batch_of_one(module: nn.Module, shape: tuple[int, ...], outputs: int) -> None:
    found = []
    for unbatched in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(copy.deepcopy(module), nn.Tanh(), nn.Flatten(-len(shape)), nn.Linear(outputs, 2))
        sample = torch.randn(1, *shape)
        trained = Trained(model, sgd(model.parameters()), sample)
        trained.step(model(sample[0] if unbatched else sample).square().sum())
        assert trained.handle.stats.errors == 0
        found.append((rows(trained.frames[0]), trained.transport.records(KERNEL_PERFORMANCE.name)[0]))
    (one, activations), (batch, same) = found
    assert set(one) == {"0", "3"}
    assert_equal(one, batch)
    for name in ("activation_variance", "dead_neuron_ratio", "avg_correlation"):
        assert getattr(activations, name) == pytest.approx(getattr(same, name), rel=1e-5)


def test_a_layer_that_is_not_trained_has_no_numbers() -> None:
    model = network()
    model.get_submodule("3").requires_grad_(False)
    trained = Trained(model, sgd(model.parameters()))
    for step in range(3):
        inputs, labels = data(seed=step)
        trained.step(F.cross_entropy(model(inputs), labels))
    assert [frame.layer_id for frame in trained.frames] == [["0", "5"]] * 3
    model.get_submodule("3").requires_grad_(True)
    for step in range(2):
        trained.step(F.cross_entropy(model(data(seed=step)[0]), data(seed=step)[1]))
    assert trained.frames[-1].layer_id == ["0", "3", "5"]
    assert trained.handle.stats.errors == 0


def test_a_layer_that_another_optimiser_trains_has_no_numbers() -> None:
    model = network()
    other = sgd(model.get_submodule("0").parameters())
    trained = Trained(model, sgd([*model.get_submodule("3").parameters(), *model.get_submodule("5").parameters()]))
    for step in range(2):
        inputs, labels = data(seed=step)
        loss = F.cross_entropy(model(inputs), labels)
        other.zero_grad()
        trained.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        other.step()
        trained.optimizer.step()
        trained.handle.step(loss=loss)
    assert [frame.layer_id for frame in trained.frames] == [["3", "5"]] * 2
    assert trained.handle.stats.errors == 0


def test_a_step_that_the_gradient_scaler_skips_has_no_numbers_and_the_next_one_its_own() -> None:
    model = network()
    trained = Trained(model, sgd(model.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(6):
        inputs, labels = data(seed=step)
        loss = F.cross_entropy(model(inputs), labels)
        if step in (2, 3):
            loss = loss * torch.inf
        trained.optimizer.zero_grad()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if step in (2, 3):
            before = [p.detach().clone() for p in model.parameters()]
        expected = None
        scaler.step(trained.optimizer)
        scaler.update()
        expected = norm(p.grad for p in model.get_submodule("3").parameters())
        if step in (2, 3):
            assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        trained.handle.step(loss=loss.detach())
        newest = trained.frames[-1]
        if step in (2, 3):
            assert newest.layer_id == []
        elif newest.step == step + 1:
            assert newest.gradient_norm[newest.layer_id.index("3")] == pytest.approx(expected, rel=1e-4)
            assert all(score is not None for score in newest.growth_score)
    assert [frame.step for frame in trained.frames][-2:] == [5, 6]
    assert trained.handle.stats.errors == 0


def test_a_sparse_gradient_is_measured_by_its_values() -> None:
    class Decoder(nn.Module):
        """A Linear whose weight is that of an embedding with sparse gradients."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 6, sparse=True)
            self.head = nn.Linear(6, 10, bias=False)
            self.last = nn.Linear(6, 3)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            features = self.embedding(tokens).mean(dim=1)
            with torch.no_grad():
                self.head(features)
            return self.last(features)

    torch.manual_seed(0)
    model = Decoder()
    tokens = torch.tensor([[1, 2, 2], [3, 1, 1]])
    trained = Trained(model, sgd(model.parameters()), tokens)
    trained.step(F.cross_entropy(model(tokens), torch.tensor([0, 1])))
    gradient = model.embedding.weight.grad
    assert gradient is not None
    assert gradient.is_sparse
    found = rows(trained.frames[0])
    assert found["head"].gradient_norm == pytest.approx(norm([gradient.to_dense()]), rel=1e-5)
    assert trained.handle.stats.errors == 0


def test_several_optimisers_are_measured_each_at_its_own_step() -> None:
    found = {}
    for several in (False, True):
        model = network()
        groups = [list(model.get_submodule(name).parameters()) for name in ("0", "3", "5")]
        parts = [*(p for group in groups for p in group if p.ndim > 1)], [*(p for g in groups for p in g if p.ndim < 2)]
        optimizers = [sgd(parts[0]), sgd(parts[1])] if several else [sgd(model.parameters())]
        layers = {n: KasminaLayer(m, layer_id=n, spec=s) for n, (m, s) in specs(model).items()}
        for name, layer in layers.items():
            setattr(model, name, layer)
        probes = Probes(layers, optimizers, OverheadMeter())
        for step in range(2):
            inputs, labels = data(seed=step)
            probes.arm(growth=True)
            loss = F.cross_entropy(model(inputs), labels)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
            found[several] = probes.collect()
        assert probes.failures.count == 0
    one, two = found[False], found[True]
    assert one is not None
    assert two is not None
    assert set(two.learning) == {"0", "3", "5"}
    for layer, learning in one.learning.items():
        assert two.learning[layer].gradient_norm == pytest.approx(learning.gradient_norm, rel=1e-5)
        assert two.learning[layer].update_ratio == pytest.approx(learning.update_ratio, rel=1e-5)
        assert two.growth[layer] == pytest.approx(one.growth[layer], rel=1e-5)


def specs(model: nn.Module) -> dict[str, tuple[nn.Module, LayerSpec]]:
    shapes = {"0": (1, 2, 8), "3": (1, 12), "5": (1, 4)}
    modules = {name: model.get_submodule(name) for name in shapes}
    return {n: (m, LayerSpec.of(n, m, torch.zeros(shapes[n]))) for n, m in modules.items()}


@pytest.mark.parametrize("name", ["plain", "scaling_oddly", "scaling_oddly_fused", "accumulating", "closure"])
def test_gradients_that_processes_average_are_taken_at_the_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "_averages_gradients", lambda: True)
    kind, optimize = LOOPS[name]

    class Averaging(kind):  # type: ignore[valid-type, misc]
        """Other processes make the gradient three times as large, without a trace that autograd keeps."""

        def update(self) -> None:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.data.mul_(3.0)
            super().update()

    found, expected = train(lambda model: Averaging(model, optimize(model.parameters())), network())
    for row in expected.values():
        row.gradient_norm *= 1.0 if name == "closure" else 3.0  # nothing comes between a closure and the update
    assert_equal(found, expected)
