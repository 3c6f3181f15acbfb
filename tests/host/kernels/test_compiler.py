"""Compilation: what passes is stored, what does not is refused with the reason."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tamiyo.host import LayerSpec, blueprints
from tamiyo.host._kernels.compiler import compile_kernel
from tamiyo.host._kernels.store import KernelStore
from tamiyo.host.blueprints import CATALOGUE, Blueprint, Kernel, for_layer
from tamiyo.schemas.errors import KernelError, KernelIncompatible
from tests.support.layers import GEOMETRIES, layer, random_input, spec_of

ID = "00c0ffee"


@pytest.fixture
def store(tmp_path: Path) -> KernelStore:
    return KernelStore(str(tmp_path / "kernels"))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_blueprint_compiles_for_every_layer_it_supports(geometry: str, store: KernelStore) -> None:
    wrapped = layer(geometry, num_seeds=len(CATALOGUE))
    x = random_input(wrapped.spec)
    before = wrapped(x)
    for number, name in enumerate(for_layer(wrapped.spec)):
        receipt = compile_kernel(wrapped.spec, name, f"{number:08x}", store, parameter_budget=10**6)
        built, _ = store.get(receipt.kernel_id, receipt.checksum)
        wrapped.load_kernel(built, kernel_id=receipt.kernel_id, blueprint=name, step=0)
    assert torch.equal(wrapped(x), before)


def test_compiling_again_gives_the_same_bytes_and_another_id_another_kernel(store: KernelStore, tmp_path: Path) -> None:
    spec = spec_of("conv1d")
    torch.manual_seed(1)
    first = compile_kernel(spec, "bottleneck", ID, store, parameter_budget=300)
    torch.manual_seed(2)
    elsewhere = KernelStore(str(tmp_path / "elsewhere"))
    assert compile_kernel(spec, "bottleneck", ID, elsewhere, parameter_budget=300) == first
    other = compile_kernel(spec, "bottleneck", "00c0ffef", store, parameter_budget=300)
    weights = [store.get(r.kernel_id, r.checksum)[0].get_parameter("first.weight") for r in (first, other)]
    assert not torch.equal(*weights)


def test_the_global_random_state_is_left_alone(store: KernelStore) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    compile_kernel(spec_of("conv2d"), "parallel_expansion", ID, store, parameter_budget=10**6)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_budget_is_exact(store: KernelStore) -> None:
    spec = spec_of("conv1d")  # bottleneck: 2 x 6 x 16 + 16 + 6 = 214
    with pytest.raises(KernelError, match="needs 214 parameters, the budget is 213"):
        compile_kernel(spec, "bottleneck", ID, store, parameter_budget=213)
    assert not store.exists(ID)
    assert compile_kernel(spec, "bottleneck", ID, store, parameter_budget=214).parameters == 214


def test_a_gigantic_request_is_refused_before_anything_is_built(store: KernelStore) -> None:
    spec = LayerSpec("x", "linear", 2**24, 2**24, (2**24,), (2**24,))
    with pytest.raises(KernelError, match="the budget is 1000000"):
        compile_kernel(spec, "parallel_expansion", ID, store, parameter_budget=10**6)


def test_invalid_requests_are_refused(store: KernelStore) -> None:
    with pytest.raises(KernelError, match="there is no blueprint 'attention'"):
        compile_kernel(spec_of("linear"), "attention", ID, store, parameter_budget=1000)
    with pytest.raises(KernelIncompatible, match="squeeze_excite does not support linear layer 'head': use parallel_"):
        compile_kernel(spec_of("linear", "head"), "squeeze_excite", ID, store, parameter_budget=1000)
    with pytest.raises(KernelError, match="8 to 64 hex digits"):
        compile_kernel(spec_of("linear"), "bottleneck", "../../x", store, parameter_budget=1000)


class Odd(Kernel):
    """A kernel with one fault."""

    def __init__(self, fault: str, features: int) -> None:
        super().__init__()
        self.fault = fault
        self.last = nn.Linear(features, features)

    def hidden(self, layer_input: Tensor, layer_output: Tensor) -> Tensor:
        return layer_output

    def forward(self, layer_input: Tensor, layer_output: Tensor) -> Tensor:
        delta = super().forward(layer_input, layer_output)
        if self.fault == "raises":
            raise ValueError("no such thing")
        if self.fault == "shape":
            return delta[..., :-1]
        if self.fault == "not finite":
            return delta / delta.detach()
        if self.fault == "moves":
            return delta + 0.01
        if self.fault == "moves in training":
            return delta + 0.01 * self.training
        if self.fault == "numb":
            return delta * 0.0
        if self.fault == "bad gradient":
            return delta * torch.nan_to_num((delta.detach() * 0 + 1) * 3e38) * 3e38 if delta.requires_grad else delta
        return delta


class OddBlueprint(Blueprint):
    name = "odd"

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def supports(self, spec: LayerSpec) -> bool:
        return True

    def parameters(self, spec: LayerSpec) -> int:
        return spec.out_features * (spec.out_features + 1) + (self.fault == "miscounted")

    def flops(self, spec: LayerSpec) -> int:
        return spec.out_features**2

    def make(self, spec: LayerSpec) -> Kernel:
        return Odd(self.fault, spec.out_features)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("miscounted", "built 56 parameters, expected 57"),
        ("raises", "odd cannot run at layer 'layer': no such thing"),
        ("shape", r"delta has shape \(2, 6\), the layer's output \(2, 7\)"),
        ("not finite", "delta on a random input is not finite"),
        ("moves", "changes the output by 0.01, at most 1e-06"),
        ("moves in training", "changes the output by 0.01, at most 1e-06"),
        ("numb", "it cannot learn"),
        ("bad gradient", "gradient on a random input is not finite"),
    ],
)
def test_a_faulty_kernel_is_not_stored(
    fault: str, message: str, store: KernelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(blueprints.CATALOGUE, "odd", OddBlueprint(fault))
    with pytest.raises(KernelError, match=message):
        compile_kernel(spec_of("linear"), "odd", ID, store, parameter_budget=1000)
    assert not store.exists(ID)


def test_the_same_kernel_without_a_fault_is_stored(store: KernelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blueprints.CATALOGUE, "odd", OddBlueprint("none"))
    assert compile_kernel(spec_of("linear"), "odd", ID, store, parameter_budget=1000).parameters == 56
