"""Gradient norm, update ratio and growth score of a sampled step, against a slow reference, in many kinds of loops."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tamiyo.host import LayerSpec, attach
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._probes import gradients
from tamiyo.host._probes.overhead import OverheadMeter
from tamiyo.host._probes.probes import Probes
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.telemetry import LayerHealth
from tamiyo.schemas.topics import KERNEL_PERFORMANCE, LAYER_HEALTH
from tests.host.probes.measured_loops import (
    LOOPS,
    Accumulating,
    Batches,
    Loop,
    Optimize,
    adam,
    assert_equal,
    norm,
    rows,
    sgd,
    train,
)
from tests.support.runs import data, network, settings


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
