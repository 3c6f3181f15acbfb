"""The state dict of a grown model, and copies of it."""

import copy
import io
import threading

import pytest
import torch
from torch import Tensor, nn

from tamiyo.host._kernels.cache import KernelCache
from tamiyo.host._kernels.store import KernelStore
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._layers.layer_state import pack
from tamiyo.host._layers.seed import SeedState
from tamiyo.host.blueprints import CATALOGUE
from tamiyo.schemas.errors import KernelCorrupt, KernelError, KernelIncompatible
from tests.support.layers import FaultyKernel, layer, load, train


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
