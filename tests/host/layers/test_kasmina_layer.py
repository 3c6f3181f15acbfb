"""KasminaLayer: function kept at a load, ramps, gates and statistics."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tamiyo.host._kernels.cache import KernelCache
from tamiyo.host._kernels.store import KernelStore
from tamiyo.host._layers.kasmina_layer import KERNELS, KasminaLayer
from tamiyo.host._layers.seed import SeedState
from tamiyo.host.blueprints import CATALOGUE, for_layer
from tamiyo.schemas.errors import KernelError, KernelIncompatible
from tests.support.layers import GEOMETRIES, FaultyKernel, kernel, layer, load, random_input, spec_of


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_load_preserves_the_function(geometry: str, mode: bool) -> None:
    wrapped = layer(geometry, num_seeds=len(CATALOGUE)).train(mode)
    x = random_input(wrapped.spec)
    before = wrapped(x)
    assert torch.equal(before, wrapped.base(x))
    for name in for_layer(wrapped.spec):
        load(wrapped, name, taught=False)
        assert float((wrapped(x) - before).detach().abs().max()) < 1e-6
    assert wrapped(x).dtype is before.dtype
    loaded = [seed.kernel for seed in wrapped.seeds if seed.kernel is not None]
    assert all(built.training is mode for built in loaded)


def test_the_output_is_the_base_and_each_kernels_share_of_the_same_base() -> None:
    wrapped = layer("conv1d", ramp_steps=4)
    x = random_input(wrapped.spec)
    first = load(wrapped, "parallel_expansion", step=0)
    wrapped.advance(3)
    second = load(wrapped, "squeeze_excite", step=3)
    y = wrapped.base(x)
    deltas = [wrapped.kernels[str(i)](x, y) for i in (first, second)]
    assert (wrapped.seeds[first].alpha, wrapped.seeds[second].alpha) == (1.0, 0.25)
    assert torch.allclose(wrapped(x), y + deltas[0] + 0.25 * deltas[1], atol=1e-6)


def test_the_ramp_is_continuous_both_ways_and_ends_where_it_began() -> None:
    wrapped = layer("linear", ramp_steps=10)
    x = random_input(wrapped.spec)
    plain = wrapped(x).detach()
    load(wrapped, step=0)
    full = (wrapped.kernels["0"](x, plain)).detach()
    shares = []
    for step in range(1, 12):
        wrapped.advance(step)
        shares.append(float(((wrapped(x).detach() - plain) / full).median()))
    assert shares == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0], abs=1e-4)
    wrapped.unload()
    down = []
    for step in range(12, 22):
        dropped = wrapped.advance(step)
        down.append(float(((wrapped(x).detach() - plain) / full).median()))
    assert down == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], abs=1e-4)
    assert [(d.seed_index, d.kernel_id) for d in dropped] == [(0, "00000000")]
    assert torch.equal(wrapped(x), plain)
    assert wrapped.performance.errors == 0
    assert wrapped.kernel_parameters == 0
    assert [name for name, _ in wrapped.named_parameters()] == ["base.weight", "base.bias"]


def test_gating_off_leaves_one_kernel_out_and_nothing_else() -> None:
    wrapped = layer("linear", ramp_steps=0)
    x = random_input(wrapped.spec)
    load(wrapped, "bottleneck")
    only_first = wrapped(x)
    load(wrapped, "low_rank")
    both = wrapped(x)
    with wrapped.gated_off(1):
        assert torch.equal(wrapped(x), only_first)
        with wrapped.gated_off(0):
            assert torch.equal(wrapped(x), wrapped.base(x))
        assert torch.equal(wrapped(x), only_first)
        with wrapped.gated_off(1):
            pass
        assert torch.equal(wrapped(x), only_first)
    assert torch.equal(wrapped(x), both)
    with pytest.raises(ZeroDivisionError), wrapped.gated_off(0):
        raise ZeroDivisionError
    assert torch.equal(wrapped(x), both)


def test_loads_that_are_refused_leave_the_layer_as_it_was() -> None:
    wrapped = layer("linear", num_seeds=1)
    with pytest.raises(KernelIncompatible, match="cannot run at layer 'layer'"):
        wrapped.load_kernel(kernel(spec_of("conv1d")), kernel_id="aa", blueprint="bottleneck", step=0)
    with pytest.raises(KernelIncompatible, match=r"returns shape \(2, 9\), layer 'layer' returns \(2, 7\)"):
        wrapped.load_kernel(FaultyKernel(9), kernel_id="aa", blueprint="bottleneck", step=0)
    with pytest.raises(KernelError, match=r"would change the output of layer 'layer' by \d"):
        wrapped.load_kernel(kernel(wrapped.spec, trained=True), kernel_id="aa", blueprint="bottleneck", step=0)
    with pytest.raises(KernelError, match="by nan"):
        wrapped.load_kernel(FaultyKernel(7, 1, "nan"), kernel_id="aa", blueprint="bottleneck", step=0)
    with pytest.raises(KernelError, match=r"seeds 0\.\.0, got 1"):
        wrapped.load_kernel(kernel(wrapped.spec), kernel_id="aa", blueprint="bottleneck", step=0, seed_index=1)
    assert wrapped.get_layer_stats()["state_stats"]["dormant_seeds"] == 1
    assert wrapped.kernel_parameters == 0
    load(wrapped)
    with pytest.raises(KernelError, match="no dormant seed among its 1"):
        load(wrapped)
    with pytest.raises(KernelError, match="seed 0 of layer 'layer' carries kernel 00000000"):
        wrapped.load_kernel(kernel(wrapped.spec), kernel_id="aa", blueprint="bottleneck", step=0, seed_index=0)


def test_the_newest_kernel_is_the_one_unloaded_or_made_permanent() -> None:
    wrapped = layer("linear", ramp_steps=1)
    with pytest.raises(KernelError, match="has no kernel to unload"):
        wrapped.unload()
    with pytest.raises(KernelError, match="has no kernel to make permanent"):
        wrapped.fossilize()
    for step in (5, 3, 4):
        load(wrapped, step=step)
    assert wrapped.fossilize() == 0
    assert wrapped.unload() == 2
    assert wrapped.unload() == 1
    with pytest.raises(KernelError, match="has no kernel to unload"):
        wrapped.unload()
    assert [d.seed_index for d in wrapped.advance(6)] == [1, 2]
    assert [seed.state for seed in wrapped.seeds] == [SeedState.FOSSILIZED] + [SeedState.DORMANT] * 3
    with pytest.raises(KernelError, match="permanent"):
        wrapped.unload(0)


def test_the_specifications_layer_and_its_statistics() -> None:
    torch.manual_seed(0)
    wrapped = KasminaLayer(input_size=128, output_size=64, num_seeds=4, telemetry_enabled=True)
    x = torch.randn(8, 128)
    assert wrapped(x).shape == (8, 64)
    assert wrapped.get_layer_stats()["state_stats"]["active_seeds"] == 0
    load(wrapped, "parallel_expansion", step=0)
    wrapped(x)
    stats = wrapped.get_layer_stats()
    assert stats["state_stats"] == {
        "num_seeds": 4,
        "dormant_seeds": 3,
        "loading_seeds": 1,
        "active_seeds": 1,
        "error_recovery_seeds": 0,
        "fossilized_seeds": 0,
    }
    assert stats["performance"]["total_executions"] == 2
    assert stats["performance"]["kernel_executions"] == 1
    assert stats["performance"]["errors"] == 0
    assert stats["performance"]["error_rate"] == 0.0
    assert 0 < stats["performance"]["last_latency_ms"] <= 2 * stats["performance"]["average_latency_ms"]
    assert stats["parameters"] == {"base": 128 * 64 + 64, "kernels": 128 * 512 + 512 + 512 * 64 + 64}
    assert stats["cache"] == {}
    described = stats["seeds"][0]
    assert (described["seed_id"], described["state"], described["alpha"]) == (0, "LOADING", 0.02)
    assert (described["blueprint"], described["executions"], described["parameters"]) == (
        "parallel_expansion",
        1,
        stats["parameters"]["kernels"],
    )


def test_cache_rates_come_from_the_cache() -> None:
    cache = KernelCache(KernelStore("memory://stats"))
    wrapped = layer("linear", cache=cache)
    with pytest.raises(KernelError):
        cache.prefetch("0" * 8, "0" * 64)
    assert wrapped.get_layer_stats()["cache"] == {
        "hits": 0,
        "misses": 1,
        "evictions": 0,
        "entries": 0,
        "size_bytes": 0,
        "hit_rate": 0.0,
    }


def test_without_telemetry_an_ungrown_layer_is_not_timed() -> None:
    wrapped = layer("linear", telemetry_enabled=False)
    wrapped(random_input(wrapped.spec))
    performance = wrapped.get_layer_stats()["performance"]
    assert (performance["total_executions"], performance["average_latency_ms"]) == (1, None)


def test_the_observer_receives_input_and_output() -> None:
    wrapped = layer("linear", ramp_steps=0, telemetry_enabled=False)
    load(wrapped)
    seen: list[tuple[KasminaLayer, Tensor, Tensor, float]] = []
    x = random_input(wrapped.spec)
    wrapped.observer = lambda *call: seen.append(call)
    out = wrapped(x)
    wrapped.observer = None
    wrapped(x)
    assert len(seen) == 1
    assert seen[0][0] is wrapped
    assert seen[0][1] is x
    assert seen[0][2] is out
    assert seen[0][3] > 0.0


def test_attributes_of_the_base_show_through() -> None:
    wrapped = layer("conv2d")
    assert wrapped.weight is wrapped.base.weight
    assert (wrapped.in_channels, wrapped.kernel_size) == (3, (3, 3))
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = wrapped.no_such_thing


def test_the_spec_is_found_at_the_first_forward() -> None:
    wrapped = KasminaLayer(nn.Conv1d(2, 6, 5, padding=2), layer_id="stem")
    with pytest.raises(KernelError, match="'stem' has no input shape yet"):
        _ = wrapped.spec
    wrapped(torch.randn(4, 2, 33))
    assert wrapped.spec.sample_output_shape == (6, 33)
    load(wrapped)
    with pytest.raises(KernelError, match="needs a base module, or input_size"):
        KasminaLayer(input_size=3)


def test_a_frozen_layer_stays_frozen_while_its_kernel_learns() -> None:
    wrapped = layer("linear", ramp_steps=0)
    wrapped.base.requires_grad_(False)
    load(wrapped)
    wrapped(random_input(wrapped.spec)).sum().backward()
    assert wrapped.base.weight.grad is None
    assert all(p.grad is not None for p in wrapped.kernels.parameters())


def test_a_layer_called_twice_in_one_step_trains() -> None:
    module = nn.Linear(5, 5)
    wrapped = KasminaLayer(module, ramp_steps=3)
    x = torch.randn(3, 5)
    wrapped(x)
    load(wrapped)
    wrapped(torch.relu(wrapped(x))).square().mean().backward()
    assert all(p.grad is not None for p in wrapped.parameters())


def test_half_precision_after_wrapping_works() -> None:
    wrapped = layer("linear", ramp_steps=0).to(torch.bfloat16)
    load(wrapped)
    assert wrapped(torch.randn(2, 5, dtype=torch.bfloat16)).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("base", "holder"),
    [(nn.Linear(4, 2), lambda base: base), (nn.MultiheadAttention(4, 2), lambda base: base.out_proj)],
)
def test_the_parameters_of_a_layer_are_without_the_kernels_registered_in_it(base: nn.Module, holder: Any) -> None:
    own = list(base.parameters())
    holder(base).add_module(KERNELS, nn.Linear(3, 3))
    found = list(KasminaLayer(base, in_place=True).own_parameters())
    assert [id(each) for each in found] == [id(each) for each in own]
