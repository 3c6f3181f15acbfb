"""What is measured at a sampled step, against independent computations."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tamiyo.host import LayerSpec
from tamiyo.host._adaptation.growing_optimizer import GrowingOptimizer
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._probes.activations import MAX_POSITIONS, MAX_UNITS, activation_stats, unit_values
from tamiyo.host._probes.growth_score import GrowthProbe
from tamiyo.host._probes.overhead import OverheadMeter
from tamiyo.host._probes.probes import Probes


def stats_of(output: Tensor, channels_last: bool = False) -> tuple[float, float, float]:
    units = unit_values(output, channels_last)
    assert isinstance(units, np.ndarray)
    return activation_stats(units.reshape(len(units), -1))


def test_activation_statistics_of_a_convolution() -> None:
    output = torch.randn(8, 5, 11, generator=torch.Generator().manual_seed(0))
    output[:, 1] = output[:, 0] * 2 + 1
    output[:, 3] = -1.5
    variance, dead, correlation = stats_of(output)
    units = output.transpose(0, 1).flatten(1).double().numpy()
    assert variance == pytest.approx(units.var(), rel=1e-5)
    assert dead == 1 / 5
    varying = np.abs(np.corrcoef(units[[0, 1, 2, 4]]))
    assert correlation == pytest.approx((varying.sum() - 4) / 12, rel=1e-4)


def test_activation_statistics_of_a_linear_layer_in_a_sequence() -> None:
    output = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0))
    variance, dead, correlation = stats_of(output, channels_last=True)
    units = output.reshape(-1, 4).T.double().numpy()
    assert variance == pytest.approx(units.var(), rel=1e-5)
    assert dead == 0.0
    assert correlation == pytest.approx((np.abs(np.corrcoef(units)).sum() - 4) / 12, rel=1e-4)


def test_a_unit_that_is_always_zero_is_dead() -> None:
    _, dead, _ = activation_stats(np.array([[0.0, 0.0], [1.0, 2.0], [-1.0, -2.0], [0.0, 1.0]], dtype=np.float32))
    assert dead == 0.5


def test_no_pair_of_units_varies() -> None:
    assert stats_of(torch.full((4, 3, 5), -2.0)) == (0.0, 1.0, 0.0)
    assert stats_of(torch.randn(4, 1, 5))[2] == 0.0


def test_a_very_large_output_is_sampled() -> None:
    values = unit_values(torch.randn(100, 1000, 100), channels_last=False)
    assert values.shape[0] <= MAX_UNITS
    assert values.shape[1] * values.shape[2] <= MAX_POSITIONS


def test_half_precision_is_read_as_it_is() -> None:
    output = torch.randn(8, 5, 11, generator=torch.Generator().manual_seed(0)).bfloat16()
    values = unit_values(output, channels_last=False)
    assert isinstance(values, Tensor)
    assert torch.equal(values, output.transpose(0, 1))


class Network:
    """Two wrapped layers with an in-place ReLU between them."""

    def __init__(self, lr: float = 0.1) -> None:
        torch.manual_seed(0)
        conv, head = nn.Conv1d(2, 3, 3, padding=1), nn.Linear(24, 2)
        self.layers = {
            "conv": KasminaLayer(conv, layer_id="conv", spec=LayerSpec.of("conv", conv, torch.zeros(1, 2, 8))),
            "head": KasminaLayer(head, layer_id="head", spec=LayerSpec.of("head", head, torch.zeros(1, 24))),
        }
        self.model = nn.Sequential(self.layers["conv"], nn.ReLU(inplace=True), nn.Flatten(), self.layers["head"])
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.growing = GrowingOptimizer(self.optimizer)
        self.meter = OverheadMeter()
        self.probes = Probes(self.layers, [self.optimizer], self.meter)
        self.inputs = torch.randn(16, 2, 8)
        self.labels = torch.randint(0, 2, (16,))

    def step(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.inputs), self.labels).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def test_nothing_is_measured_unless_armed() -> None:
    network = Network()
    network.step()
    assert network.probes.collect() is None
    assert network.probes.take_seconds() == 0.0


def test_activations_are_those_before_an_in_place_relu() -> None:
    network = Network()
    expected = network.layers["conv"].base(network.inputs).detach()
    network.probes.arm(growth=False)
    assert network.probes.armed
    network.step()
    measured = network.probes.collect()
    assert measured is not None
    assert not network.probes.armed
    assert measured.batch == 16
    row = measured.activations["conv"]
    assert (row.variance, row.dead_ratio, row.correlation) == pytest.approx(stats_of(expected))
    assert row.variance == pytest.approx(float(expected.var(correction=0)), rel=1e-5)
    assert row.latency_ms > 0


def test_gradient_norm_and_update_ratio_are_of_the_layers_own_parameters() -> None:
    network = Network(lr=0.1)
    base = network.layers["head"].base
    before = torch.cat([p.detach().reshape(-1).clone() for p in base.parameters()])
    network.probes.arm(growth=False)
    network.step()
    gradient = torch.cat([p.grad.reshape(-1) for p in base.parameters() if p.grad is not None])
    measured = network.probes.collect()
    assert measured is not None
    assert measured.learning["head"].gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert measured.learning["head"].update_ratio == pytest.approx(
        float(0.1 * gradient.norm() / before.norm()), rel=1e-4
    )
    assert set(measured.learning) == {"conv", "head"}


def test_the_update_is_measured_after_a_layers_rate_was_scaled() -> None:
    ratios = []
    for factor in (1.0, 0.5):
        network = Network()
        if factor < 1:
            network.growing.scale_learning_rate(network.layers["head"].base.parameters(), factor)
        network.probes.arm(growth=False)
        network.step()
        measured = network.probes.collect()
        assert measured is not None
        ratios.append(measured.learning["head"].update_ratio)
    assert ratios[1] == pytest.approx(ratios[0] / 2, rel=1e-4)


def test_growth_scores_come_from_the_gradient_at_the_output() -> None:
    network = Network()
    layer = network.layers["conv"]
    output = layer.base(network.inputs)
    output.retain_grad()
    F.cross_entropy(network.layers["head"].base(output.relu().flatten(1)), network.labels).backward()
    expected = float(GrowthProbe(layer.spec).score(network.inputs, output.grad))
    network.probes.arm(growth=True)
    network.step()
    measured = network.probes.collect()
    assert measured is not None
    assert set(measured.growth) == {"conv", "head"}
    assert measured.growth["conv"] == pytest.approx(expected, rel=1e-3)
    assert measured.growth_seconds > 0
    network.probes.arm(growth=False)
    network.step()
    again = network.probes.collect()
    assert again is not None
    assert again.growth == {}


def test_forward_passes_that_are_not_trained_on_are_not_measured() -> None:
    network = Network()
    network.probes.arm(growth=True)
    network.model.eval()
    network.model(network.inputs)
    network.model.train()
    with torch.no_grad():
        network.model(network.inputs)
    measured = network.probes.collect()
    assert measured is not None
    assert (measured.activations, measured.learning, measured.growth) == ({}, {}, {})


def test_values_that_are_not_finite_are_left_out() -> None:
    network = Network()
    network.probes.arm(growth=True)
    network.inputs[0, 0, 0] = torch.nan
    network.step()
    measured = network.probes.collect()
    assert measured is not None
    assert (measured.activations, measured.learning, measured.growth) == ({}, {}, {})


def test_a_frozen_layer_learns_nothing_and_has_no_row() -> None:
    network = Network()
    network.layers["conv"].base.requires_grad_(False)
    network.probes.arm(growth=False)
    network.step()
    measured = network.probes.collect()
    assert measured is not None
    assert set(measured.learning) == {"head"}
    assert set(measured.activations) == {"conv", "head"}


def test_an_error_of_the_sdk_does_not_reach_the_training_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()

    def fail(*_: object, **__: object) -> Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("tamiyo.host._probes.probes.unit_values", fail)
    network.probes.arm(growth=False)
    network.step()
    assert network.probes.failures.count == 2
    assert network.probes.collect() is not None


def test_a_backward_pass_that_failed_leaves_no_norm_to_be_taken_after_clipping() -> None:
    network = Network()
    network.probes.arm(growth=False)

    def fail(gradient: Tensor) -> None:
        raise RuntimeError("out of memory")

    hidden = network.layers["conv"](network.inputs)
    hidden.register_hook(fail)
    logits = network.layers["head"](hidden.relu().flatten(1))
    with pytest.raises(RuntimeError, match="out of memory"):
        F.cross_entropy(logits, network.labels).backward()  # type: ignore[no-untyped-call]
    network.optimizer.zero_grad()
    F.cross_entropy(network.model(network.inputs), network.labels).backward()  # type: ignore[no-untyped-call]
    norm = sum(float(p.grad.square().sum()) for p in network.layers["head"].base.parameters() if p.grad is not None)
    torch.nn.utils.clip_grad_norm_(network.model.parameters(), 1e-3)
    network.optimizer.step()
    measured = network.probes.collect()
    assert measured is not None
    assert measured.learning["head"].gradient_norm == pytest.approx(norm**0.5)


def test_hooks_count_as_the_sdks_time_and_are_removed() -> None:
    network = Network()
    network.meter.start()
    network.probes.arm(growth=False)
    network.step()
    assert network.meter.sdk_seconds > 0
    assert network.probes.take_seconds() == pytest.approx(network.meter.sdk_seconds, rel=0.5)
    network.probes.close()
    network.probes.arm(growth=False)
    network.step()
    measured = network.probes.collect()
    assert measured is not None
    assert measured.learning == {}
