"""Counterfactuals on a held-out batch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tamiyo.host._common.undisturbed import evaluating
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._layers.seed import SeedState
from tamiyo.host._probes.counterfactual import HeldOutBatch, active_seeds, latency_ms
from tests.support.layers import kernel


def grown() -> tuple[nn.Sequential, KasminaLayer, HeldOutBatch]:
    torch.manual_seed(0)
    layer = KasminaLayer(layer_id="0", input_size=5, output_size=7, num_seeds=2, ramp_steps=0)
    model = nn.Sequential(layer, nn.Dropout(0.5), nn.Linear(7, 3))
    return model, layer, HeldOutBatch(model, F.cross_entropy, torch.randn(20, 5), torch.randint(0, 3, (20,)))


def load(layer: KasminaLayer, seed: int = 1) -> int:
    """A kernel that has learned something since it was loaded."""
    fresh = kernel(layer.spec, seed=seed)
    index = layer.load_kernel(fresh, kernel_id="ab" * 4, blueprint="bottleneck", step=0)
    with torch.no_grad():
        for parameter in fresh.last.parameters():
            parameter.fill_(0.3)
    return index


def test_contribution_is_the_loss_without_the_kernel_minus_with_it() -> None:
    _, layer, held_out = grown()
    bare = held_out.loss()
    load(layer)
    with_kernel = held_out.loss()
    assert bare is not None
    assert with_kernel is not None
    assert bare != with_kernel
    assert held_out.contributions([layer]) == {"0": pytest.approx(bare - with_kernel, abs=1e-6)}


def test_all_active_kernels_of_a_layer_are_gated_off_together() -> None:
    _, layer, held_out = grown()
    bare = held_out.loss()
    load(layer, seed=1)
    load(layer, seed=2)
    both = held_out.loss()
    assert bare is not None
    assert both is not None
    assert held_out.contributions([layer])["0"] == pytest.approx(bare - both, abs=1e-6)
    assert held_out.loss() == both


def test_a_permanent_kernel_is_part_of_the_layer() -> None:
    _, layer, held_out = grown()
    index = load(layer)
    layer.fossilize(index)
    assert layer.seeds[index].state is SeedState.FOSSILIZED
    assert active_seeds(layer) == []
    assert held_out.contributions([layer]) == {}


def test_a_loss_that_is_not_finite_is_not_measured() -> None:
    model, layer, _ = grown()
    load(layer)
    held_out = HeldOutBatch(model, lambda output, _: output.sum() * torch.nan, torch.randn(2, 5), None)
    assert held_out.loss() is None
    assert held_out.contributions([layer]) == {}


def test_measuring_leaves_modes_gradients_and_random_state_alone() -> None:
    model, layer, held_out = grown()
    load(layer)
    model[1].eval()
    before = torch.get_rng_state()
    held_out.contributions([layer])
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.training, model[1].training, model[2].training) == (True, False, True)
    assert all(p.grad is None for p in model.parameters())


def test_modes_are_restored_after_an_error() -> None:
    model, _, _ = grown()
    with pytest.raises(RuntimeError), evaluating(model):
        model(torch.ones(2, 99))
    assert model.training
    with evaluating(model):
        assert not model.training


def test_latency_is_measured_without_a_trace_in_the_counters() -> None:
    _, layer, _ = grown()
    layer(torch.zeros(2, 5))
    before = layer.get_layer_stats()["performance"]
    assert latency_ms(layer, 4) > 0
    assert layer.get_layer_stats()["performance"] == before


def test_a_batch_may_be_several_arguments() -> None:
    layer = nn.Bilinear(2, 3, 4)
    inputs = (torch.ones(5, 2), torch.ones(5, 3))
    expected = float(layer(*inputs).sum().detach())
    assert HeldOutBatch(layer, lambda output, _: output.sum(), inputs, None).loss() == pytest.approx(expected)
