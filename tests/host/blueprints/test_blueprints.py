"""Every blueprint at every geometry, and the catalogue."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tamiyo.host import LayerSpec, blueprints
from tamiyo.host.blueprints import CATALOGUE, Blueprint, Kernel, blueprint, for_layer, names, register, seed_of
from tamiyo.host.blueprints._layer_kinds import run_layer
from tamiyo.schemas.errors import KernelError
from tests.support.layers import ALL, random_input, spec_of, train

PAIRS = [(name, geometry) for geometry in ALL for name in for_layer(spec_of(geometry))]


def test_the_catalogue_has_its_names_in_order() -> None:
    assert names() == ("parallel_expansion", "low_rank", "bottleneck", "depthwise_separable", "squeeze_excite")
    assert for_layer(spec_of("linear")) == ("parallel_expansion", "low_rank", "bottleneck")
    convolution = ("parallel_expansion", "bottleneck", "depthwise_separable", "squeeze_excite")
    assert for_layer(spec_of("attention")) == for_layer(spec_of("transposed_linear")) == for_layer(spec_of("linear"))
    convolutions = ("conv1d", "conv2d", "conv3d", "up1d", "up2d", "up3d")
    assert {for_layer(spec_of(name)) for name in convolutions} == {convolution}


@pytest.mark.parametrize(("name", "geometry"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_kernel_runs_in_every_dtype_with_and_without_a_batch(name: str, geometry: str, dtype: torch.dtype) -> None:
    spec = replace(spec_of(geometry), dtype=str(dtype).removeprefix("torch."))
    kernel = blueprint(name).build(spec, seed=3)
    train(kernel)
    x, y = spec.sample(2, generator=torch.Generator().manual_seed(1))
    delta = kernel(x, y)
    assert delta.dtype is dtype
    assert bool(torch.isfinite(delta).all())
    close = 1e-9 if dtype is torch.float64 else 5e-2  # half precision rounds by up to 2^-9
    torch.testing.assert_close(kernel(x[1], y[1]), delta[1], rtol=close, atol=close)


@pytest.mark.parametrize("name", for_layer(spec_of("linear")))
def test_a_kernel_of_a_linear_layer_takes_further_leading_dimensions(name: str) -> None:
    kernel = blueprint(name).build(spec_of("linear"), seed=3)
    train(kernel)
    x, y = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 7)
    torch.testing.assert_close(kernel(x, y)[1, 2, 3], kernel(x[1, 2, 3], y[1, 2, 3]))


def test_the_expansion_of_a_transposed_convolution_is_as_long_as_its_output_this_time() -> None:
    module = nn.ConvTranspose1d(2, 3, 4, stride=3)
    spec = LayerSpec.of("up", module, torch.zeros(1, 2, 5))
    kernel = blueprint("parallel_expansion").build(spec, seed=0)
    assert isinstance(kernel.get_submodule("expand"), nn.ConvTranspose1d)
    x = torch.randn(2, 2, 5)
    for length in (16, 17, 18):
        y = module(x, output_size=[length])
        assert kernel(x, y).shape == y.shape == (2, 3, length)


def test_a_transposed_convolution_longer_than_torch_reaches_has_other_kernels_only() -> None:
    module = nn.ConvTranspose1d(2, 3, 2, stride=1, dilation=3, output_padding=2)
    spec = LayerSpec.of("up", module, torch.zeros(1, 2, 5))
    assert spec.output_padding == (2,)
    assert for_layer(spec) == ("bottleneck", "depthwise_separable", "squeeze_excite")


def test_the_random_parameters_do_not_depend_on_the_default_device() -> None:
    spec = spec_of("conv1d")
    expected = blueprint("parallel_expansion").build(spec, seed=1).state_dict()
    with torch.device("meta"):
        found = blueprint("parallel_expansion").build(spec, seed=1).state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize(("name", "geometry"), PAIRS)
def test_a_kernel_changes_nothing_and_has_the_announced_size(name: str, geometry: str) -> None:
    module, _ = ALL[geometry]
    spec = spec_of(geometry)
    x = random_input(spec)
    y = run_layer(module, x)
    kernel = blueprint(name).build(spec, seed=3)
    for mode in (True, False):
        delta = kernel.train(mode)(x, y)
        assert delta.shape == y.shape
        assert delta.dtype == y.dtype
        assert not bool(delta.any())
    assert kernel.parameter_count == blueprint(name).parameters(spec)
    train(kernel)
    assert float(kernel(x, y).detach().abs().max()) > 1e-3


@pytest.mark.parametrize(("name", "geometry"), PAIRS)
def test_flops_agree_with_torchs_own_counter(name: str, geometry: str) -> None:
    spec = spec_of(geometry)
    kernel = blueprint(name).build(spec, seed=3)
    x, y = spec.sample(1)
    with FlopCounterMode(display=False) as counter:
        kernel(x, y)
    # torch counts two a multiply-add, and products but not the gate's elementwise one
    gate = y.numel() if name == "squeeze_excite" else 0
    assert blueprint(name).flops(spec) == counter.get_total_flops() // 2 + gate


@pytest.mark.parametrize(("name", "geometry"), PAIRS)
def test_every_parameter_learns_once_the_last_one_has_moved(name: str, geometry: str) -> None:
    spec = spec_of(geometry)
    kernel = blueprint(name).build(spec, seed=3)
    x, y = spec.sample(8, generator=torch.Generator().manual_seed(5))
    kernel(x, y).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in kernel.last.parameters())
    train(kernel)
    kernel(x, y).square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in kernel.parameters())


def test_the_parallel_expansion_is_the_layers_geometry_eight_times_as_wide() -> None:
    kernel = blueprint("parallel_expansion").build(spec_of("conv2d_groups"), seed=0)
    expand, last = kernel.get_submodule("expand"), kernel.get_submodule("last")
    assert isinstance(expand, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    assert (expand.in_channels, expand.out_channels, expand.groups) == (4, 48, 2)
    assert (expand.kernel_size, expand.stride, expand.dilation) == ((3, 1), (2, 1), (1, 2))
    assert (last.in_channels, last.out_channels, last.kernel_size) == (48, 6, (1, 1))
    # by hand: 48 x (4/2) x 3 + 48, and 48 x 6 + 6
    assert kernel.parameter_count == 336 + 294


@pytest.mark.parametrize(("features", "width"), [(6, 48), (64, 512), (100, 512), (512, 512), (1024, 1024)])
def test_the_expansion_is_capped_at_wide_layers(features: int, width: int) -> None:
    spec = LayerSpec.of("x", nn.Linear(3, features), torch.zeros(1, 3))
    assert CATALOGUE["parallel_expansion"].parameters(spec) == 3 * width + width + width * features + features


def test_a_capped_expansion_is_still_a_multiple_of_the_groups() -> None:
    spec = LayerSpec.of("wide", nn.Conv1d(96, 96, 1, groups=3), torch.zeros(1, 96, 4))
    built = blueprint("parallel_expansion").build(spec, seed=0)
    assert built.parameter_count == blueprint("parallel_expansion").parameters(spec)
    assert built.hidden(*spec.sample(1)).shape == (1, 510, 4)


def test_a_squeeze_excite_gate_scales_whole_channels() -> None:
    spec = spec_of("conv2d")
    kernel = blueprint("squeeze_excite").build(spec, seed=0)
    train(kernel)
    x, y = spec.sample(2)
    ratio = (kernel(x, y) / y).detach().flatten(2)
    assert torch.allclose(ratio, ratio[..., :1].expand_as(ratio), atol=1e-5)
    assert float(ratio.abs().max()) <= 1.0


def test_the_same_seed_builds_the_same_kernel_and_leaves_training_alone() -> None:
    spec = spec_of("conv1d")
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    first, again, other = (blueprint("bottleneck").build(spec, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["first.weight"], other["first.weight"])


def test_reset_makes_poisoned_parameters_fresh_and_the_delta_zero() -> None:
    spec = spec_of("linear")
    kernel = blueprint("parallel_expansion").build(spec, seed=1)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter.fill_(torch.nan)
    state = torch.get_rng_state()
    kernel.reset()
    assert torch.equal(torch.get_rng_state(), state)
    x, y = spec.sample(2)
    assert not bool(kernel(x, y).any())
    assert bool(kernel.get_parameter("expand.weight").any())


def test_neither_build_nor_reset_seeds_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    built = blueprint("low_rank").build(spec_of("linear"), seed=1)
    built.reset(seed=2)
    assert seeded == []
    torch.manual_seed(3)
    assert seeded == [3]  # the check itself works


def test_a_reset_kernel_is_one_built_from_the_same_seed() -> None:
    spec = spec_of("linear")
    built, expected = (blueprint("parallel_expansion").build(spec, seed=seed) for seed in (1, 2))
    built.reset(seed=2)
    assert all(torch.equal(built.state_dict()[key], value) for key, value in expected.state_dict().items())


def test_seeds_of_ids_are_stable_across_processes() -> None:
    assert seed_of("123456789") == 0xCBF43926  # the check value of CRC-32


def test_adding_a_blueprint_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blueprints, "CATALOGUE", dict(CATALOGUE))

    class Shift(Kernel):
        def __init__(self, features: int) -> None:
            super().__init__()
            self.last = nn.Linear(features, features)

        def hidden(self, layer_input: torch.Tensor, layer_output: torch.Tensor) -> torch.Tensor:
            return layer_output

    @register
    class ShiftBlueprint(Blueprint):
        name = "shift"

        def supports(self, spec: LayerSpec) -> bool:
            return spec.type == "linear"

        def parameters(self, spec: LayerSpec) -> int:
            return spec.out_features * (spec.out_features + 1)

        def flops(self, spec: LayerSpec) -> int:
            return spec.out_features**2

        def make(self, spec: LayerSpec) -> Kernel:
            return Shift(spec.out_features)

    assert names()[-1] == "shift"
    assert blueprint("shift").build(spec_of("linear"), seed=0).parameter_count == 56
    with pytest.raises(KernelError, match="'shift' is registered by ShiftBlueprint"):
        register(ShiftBlueprint)


def test_an_unknown_name_is_refused_with_the_existing_ones() -> None:
    with pytest.raises(KernelError, match=r"'../evil'.*parallel_expansion, low_rank"):
        blueprint("../evil")
