"""KasminaLayer: function kept at a load, ramps, gates, statistics, and the state dict of a grown model."""

import copy
import io
import threading

import pytest
import torch
from torch import Tensor, nn

from tamiyo.host.blueprints import CATALOGUE, for_layer
from tamiyo.host.kernels.cache import KernelCache
from tamiyo.host.kernels.store import KernelStore
from tamiyo.host.layers.kasmina_layer import KasminaLayer, wrapping_seconds
from tamiyo.host.layers.layer_state import pack
from tamiyo.host.layers.seed import SeedState
from tamiyo.schemas.errors import KernelCorrupt, KernelError, KernelIncompatible
from tests.support.layers import GEOMETRIES, FaultyKernel, kernel, layer, random_input, spec_of, train


def load(wrapped: KasminaLayer, name: str = "bottleneck", *, step: int = 0, taught: bool = True) -> int:
    """Load a kernel through the front door, then let it learn."""
    built = kernel(wrapped.spec, name)
    index = wrapped.load_kernel(built, kernel_id=f"{step:08x}", blueprint=name, step=step)
    if taught:
        train(built)
    return index


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


# -- copies and state dicts


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv: nn.Module = nn.Conv1d(2, 6, 5, padding=2)
        self.head: nn.Module = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.conv(x)).mean(-1))
        return out


def net(seed: int = 0, num_seeds: int = 4) -> Net:
    torch.manual_seed(seed)
    made = Net()
    made.conv = KasminaLayer(made.conv, layer_id="conv", num_seeds=num_seeds, ramp_steps=4)
    made.head = KasminaLayer(made.head, layer_id="head", num_seeds=num_seeds, ramp_steps=4)
    return made


def wrapped_layers(model: nn.Module) -> dict[str, KasminaLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, KasminaLayer)}


def grown(x: Tensor) -> Net:
    """A kernel in each state: ACTIVE, LOADING, FOSSILIZED, on its way out, ERROR_RECOVERY."""
    made = net()
    made(x)
    conv, head = wrapped_layers(made).values()
    for name in ("parallel_expansion", "bottleneck", "squeeze_excite"):
        load(conv, name, step=0)
    load(head, "low_rank", step=0)
    conv.advance(4)
    head.advance(4)
    conv.fossilize(2)
    conv.unload(1)
    conv.advance(5)
    load(conv, "depthwise_separable", step=6)
    head.seeds[0].quarantine()
    head._refresh()
    return made


def test_a_state_dict_rebuilds_a_grown_model() -> None:
    x = torch.randn(4, 2, 20, generator=torch.Generator().manual_seed(1))
    source = grown(x)
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert all(isinstance(value, Tensor) for value in state.values())
    fresh = net(seed=9)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), source(x))
    conv, head = wrapped_layers(fresh).values()
    assert [seed.state.value for seed in conv.seeds] == ["ACTIVE", "ACTIVE", "FOSSILIZED", "LOADING"]
    assert [seed.alpha for seed in conv.seeds] == [1.0, 0.75, 1.0, 0.25]
    assert conv.seeds[1].unloading
    assert head.seeds[0].state is SeedState.ERROR_RECOVERY
    # and the two go on alike
    for step in range(7, 12):
        for model in (source, fresh):
            for each in wrapped_layers(model).values():
                each.advance(step)
        assert torch.equal(fresh(x), source(x))
    assert not conv.seeds[1].loaded


def test_loading_an_ungrown_state_takes_the_kernels_out() -> None:
    x = torch.randn(4, 2, 20)
    target, plain = grown(x), net(seed=3)
    target.load_state_dict(plain.state_dict())
    assert torch.equal(target(x), plain(x))
    assert all(not seed.loaded for each in wrapped_layers(target).values() for seed in each.seeds)


def test_a_state_that_does_not_fit_is_refused() -> None:
    x = torch.randn(4, 2, 20)
    state = grown(x).state_dict()
    with pytest.raises(KernelError, match=r"seeds 0\.\.1, got 2"):
        net(num_seeds=2).load_state_dict(state)
    other = net()
    other.conv = KasminaLayer(nn.Conv1d(2, 6, 5, padding=1), layer_id="conv")
    other(x)
    with pytest.raises(KernelIncompatible, match=r"padding is \(2,\), the layer's is \(1,\)"):
        other.load_state_dict(state)


def test_a_malformed_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 2, 20)
    state = grown(x).state_dict()
    key = "conv._extra_state"
    with pytest.raises(KernelCorrupt, match="malformed"):
        net().load_state_dict(state | {key: torch.tensor([1, 2, 3], dtype=torch.uint8)})
    with pytest.raises(KernelCorrupt, match="malformed"):
        net().load_state_dict(state | {key: torch.tensor(list(b'{"format": 1}'), dtype=torch.uint8)})
    with pytest.raises(KernelIncompatible, match="format 1, got 2"):
        net().load_state_dict(state | {key: torch.tensor(list(b'{"format": 2}'), dtype=torch.uint8)})
    monkeypatch.setattr(type(CATALOGUE["bottleneck"]), "version", 2)
    with pytest.raises(KernelIncompatible, match="bottleneck version 1, expected 2"):
        net().load_state_dict(state)


def test_a_kernel_of_an_unregistered_blueprint_cannot_be_saved() -> None:
    wrapped = layer("linear")
    wrapped.load_kernel(FaultyKernel(7), kernel_id="aa", blueprint="home_made", step=0)
    with pytest.raises(KernelError, match="there is no blueprint 'home_made'"):
        pack(wrapped.spec, wrapped.seeds)


def test_a_deep_copy_grows_independently_and_has_no_threads() -> None:
    x = torch.randn(4, 2, 20)
    source = grown(x)

    class Publisher:
        def __init__(self) -> None:
            self.lock = threading.Lock()  # cannot be copied

        def publish(self, *_: object) -> None: ...

    for each in wrapped_layers(source).values():
        each.observer = each.recovery.on_event = Publisher().publish
    conv = wrapped_layers(source)["conv"]
    conv.cache = KernelCache(KernelStore("memory://copy"))
    twin = copy.deepcopy(source)
    assert torch.equal(twin(x), source(x))
    theirs = wrapped_layers(twin)["conv"]
    assert theirs.observer is None
    assert theirs.cache is None
    assert theirs.recovery.on_event is None
    assert conv.observer is not None
    assert theirs.kernels["0"] is theirs.seeds[0].kernel
    assert theirs.kernels["0"] is not conv.kernels["0"]
    before = source(x)
    train(theirs.kernels["0"], seed=8)  # type: ignore[arg-type]
    assert torch.equal(source(x), before)
    assert not torch.equal(twin(x), before)


def test_measuring_the_wrappers_cost_draws_nothing_from_the_users_random_stream() -> None:
    wrapping_seconds.cache_clear()
    before = torch.get_rng_state()
    wrapping_seconds()
    assert torch.equal(torch.get_rng_state(), before)
