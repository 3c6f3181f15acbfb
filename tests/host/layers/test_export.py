"""Export: equal outputs, and no class of Tamiyo left."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tamiyo.host import export
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host.blueprints import Kernel, for_layer
from tamiyo.schemas.errors import KernelError
from tests.support.layers import GEOMETRIES, FaultyKernel, kernel, layer, random_input, train


def grow(wrapped: KasminaLayer, *blueprints: str) -> None:
    for number, name in enumerate(blueprints):
        built = kernel(wrapped.spec, name, seed=number)
        wrapped.load_kernel(built, kernel_id=f"{number:08x}", blueprint=name, step=0)
        train(built, seed=number)


def tamiyo_classes(model: nn.Module) -> list[str]:
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    return [kind.__qualname__ for kind in kinds if kind.__module__.startswith("tamiyo")]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_kernel_at_every_layer_exports_with_equal_outputs(geometry: str) -> None:
    wrapped = layer(geometry, ramp_steps=3, num_seeds=5)
    grow(wrapped, *for_layer(wrapped.spec))
    wrapped.advance(1)
    x = random_input(wrapped.spec)
    plain = export(wrapped)
    assert tamiyo_classes(plain) == []
    assert not torch.equal(wrapped(x), wrapped.base(x))
    assert torch.allclose(plain(x), wrapped(x), atol=1e-6, rtol=0)
    longer = random_input(wrapped.spec, batch=7, seed=3)
    assert torch.allclose(plain(longer), wrapped(longer), atol=1e-6, rtol=0)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first  # one layer in two places
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.again(torch.relu(self.first(x))))
        return out


def grown_model() -> nn.Sequential:
    torch.manual_seed(0)
    block = Block()
    wrapped = KasminaLayer(block.first, layer_id="first", ramp_steps=4)
    block.first = block.again = wrapped  # type: ignore[assignment]
    head = KasminaLayer(nn.Linear(4, 2), layer_id="head", ramp_steps=4)
    model = nn.Sequential(block, head).eval()
    model(torch.randn(5, 4))
    grow(wrapped, "parallel_expansion", "low_rank")
    return model


def test_a_model_is_copied_whole_and_left_alone() -> None:
    model, x = grown_model(), torch.randn(6, 4)
    before = model(x)
    plain = export(model)
    assert tamiyo_classes(plain) == []
    assert torch.allclose(plain(x), before, atol=1e-6, rtol=0)
    assert type(plain[1]) is nn.Linear  # an ungrown layer is its base again
    assert plain[0].first is plain[0].again
    assert not plain.training
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    assert torch.equal(model(x), before)
    assert isinstance(model[1], KasminaLayer)


def test_an_export_trains() -> None:
    plain = export(grown_model()).train()
    plain(torch.randn(6, 4)).sum().backward()
    assert all(p.grad is not None for p in plain.parameters())


def test_bypassed_kernels_are_left_out() -> None:
    wrapped = layer("linear", ramp_steps=0)
    grow(wrapped, "bottleneck", "low_rank")
    wrapped.seeds[0].quarantine()
    wrapped._refresh()
    x = random_input(wrapped.spec)
    plain = export(wrapped)
    assert torch.allclose(plain(x), wrapped(x), atol=1e-6, rtol=0)
    assert (
        sum(p.numel() for p in plain.parameters()) == wrapped.base_parameters + wrapped.seeds[1].kernel.parameter_count
    )  # type: ignore[union-attr]


def test_a_users_own_linear_is_kept_as_it_is() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2.0 * super().forward(input) if bool(input.any()) else input @ self.weight.T

    wrapped = KasminaLayer(Scaled(4, 4), ramp_steps=0)
    wrapped(torch.randn(1, 4))
    grow(wrapped, "bottleneck")
    x = torch.randn(3, 4)
    plain = export(wrapped)
    assert type(plain.base) is Scaled
    assert torch.allclose(plain(x), wrapped(x), atol=1e-6, rtol=0)


def test_an_export_loads_without_tamiyo(tmp_path: Path) -> None:
    wrapped = layer("conv1d", ramp_steps=0)
    grow(wrapped, *for_layer(wrapped.spec))
    plain, x = export(wrapped), random_input(wrapped.spec)
    torch.save({"model": plain, "x": x, "y": wrapped(x).detach()}, tmp_path / "plain.pt")
    program = (
        "import sys, torch\n"
        "sys.modules['tamiyo'] = None\n"
        f"saved = torch.load({str(tmp_path / 'plain.pt')!r}, weights_only=False)\n"
        "assert torch.allclose(saved['model'](saved['x']), saved['y'], atol=1e-6, rtol=0)\n"
        "assert not [name for name in sys.modules if name.startswith('tamiyo.')]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_a_kernel_that_cannot_be_traced_is_named() -> None:
    class Branching(Kernel):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(7, 7)

        def hidden(self, layer_input: Tensor, layer_output: Tensor) -> Tensor:
            return layer_output if layer_output.sum() > 0 else -layer_output

    wrapped = layer("linear", ramp_steps=0)
    built = Branching()
    built.zero_last()
    wrapped.load_kernel(built, kernel_id="0000000b", blueprint="branching", step=0)
    with pytest.raises(KernelError, match=r"layer 'layer' cannot be exported.*Branching"):
        export(wrapped)


def test_an_ungrown_layer_exports_to_its_base() -> None:
    wrapped = layer("linear")
    assert type(export(wrapped)) is nn.Linear
    wrapped.load_kernel(FaultyKernel(7), kernel_id="0000000b", blueprint="x", step=0)
    wrapped.unload()
    wrapped.advance(50)
    assert type(export(wrapped)) is nn.Linear
