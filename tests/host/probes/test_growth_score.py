"""The growth score against its definition, and the rows it is computed from against the layers themselves."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tamiyo.host import LayerSpec
from tamiyo.host._probes.growth_score import MAX_INPUTS, GrowthProbe, growth_score
from tamiyo.schemas.errors import KernelError
from tests.support.layers import ALL, GEOMETRIES, random_input, spec_of


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_score(x: Tensor, d: Tensor, h: Tensor) -> float:
    """|projection of D on what is left of h|^2, by least squares in double precision."""
    ones = np.concatenate([x.double().numpy(), np.ones((len(x), 1))], axis=1)
    features = h.double().numpy()
    rest = features - ones @ np.linalg.lstsq(ones, features, rcond=None)[0]
    gradient = d.double().numpy()
    projected = rest @ np.linalg.lstsq(rest, gradient, rcond=None)[0]
    return float((projected**2).sum())


def test_score_is_the_squared_projection_on_what_the_layer_cannot_reach() -> None:
    x, d, h = randn(200, 5, seed=1), randn(200, 3, seed=2), torch.relu(randn(200, 8, seed=3))
    assert float(growth_score(x, d, h)) == pytest.approx(slow_score(x, d, h), rel=1e-2)


def test_features_that_the_layer_has_already_score_nothing() -> None:
    x, d = randn(200, 5, seed=1), randn(200, 3, seed=2)
    h = x @ randn(5, 8, seed=3) + 2.0
    fresh = torch.relu(randn(200, 8, seed=4))
    assert float(growth_score(x, d, h)) < 0.05 * float(growth_score(x, d, fresh))


def test_a_gradient_that_new_features_explain_scores_its_whole_length() -> None:
    x, h = randn(200, 5, seed=1), torch.relu(randn(200, 8, seed=3))
    ones = torch.cat([x, torch.ones(200, 1)], dim=1)
    rest = h - ones @ torch.linalg.lstsq(ones, h).solution
    d = rest @ randn(8, 3, seed=5)
    assert float(growth_score(x, d, h)) == pytest.approx(float((d**2).sum()), rel=1e-2)


def test_no_gradient_no_score_and_dead_features_do_no_harm() -> None:
    x, d = randn(50, 3, seed=1), randn(50, 2, seed=2)
    assert float(growth_score(x, torch.zeros(50, 2), torch.relu(randn(50, 4, seed=3)))) == 0.0
    assert float(growth_score(x, d, torch.zeros(50, 4))) == 0.0


def matrix(module: nn.Module) -> Tensor:
    """The matrix that a layer multiplies one row of its unfolded input by, [outputs, fan_in]."""
    weight = module.weight.detach().float()  # type: ignore[operator, union-attr]
    if type(module).__name__.startswith("ConvTranspose"):
        weight = weight.transpose(0, 1).flip(list(range(2, weight.dim())))
    return weight.T if type(module).__name__ == "Conv1D" else weight.flatten(1)


@pytest.mark.parametrize("name", [name for name in GEOMETRIES if "groups" not in name and "depthwise" not in name])
def test_rows_are_the_inputs_that_each_output_was_computed_from(name: str) -> None:
    module, _ = GEOMETRIES[name]
    spec = spec_of(name)
    given = random_input(spec).float()
    output = module.float()(given) if spec.dtype != "float64" else module.double()(given.double()).float()
    x, d = GrowthProbe(spec).rows(given, output)
    bias = 0.0 if module.bias is None else module.bias.detach().float()  # type: ignore[operator, union-attr]
    torch.testing.assert_close(x @ matrix(module).T + bias, d, rtol=1e-4, atol=1e-5)
    every = GrowthProbe(spec).rows(given, output, every=3)
    assert torch.equal(every[0], x[::3])
    assert torch.equal(every[1], d[::3])


def test_rows_of_an_even_kernel_are_padded_more_at_the_end() -> None:
    module, given = nn.Conv1d(2, 3, 4, padding="same"), randn(3, 2, 9, seed=1)
    spec = LayerSpec.of("even", module, given)
    x, d = GrowthProbe(spec).rows(given, module(given).detach())
    expected = x @ module.weight.detach().flatten(1).T + module.bias.detach()  # type: ignore[union-attr]
    torch.testing.assert_close(expected, d, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(ALL))
def test_every_geometry_has_a_finite_score_that_is_the_same_again(name: str) -> None:
    spec = spec_of(name)
    given, gradient = spec.sample(32, generator=torch.Generator().manual_seed(0))
    score = float(GrowthProbe(spec).score(given, gradient))
    assert score >= 0
    assert float(GrowthProbe(spec).score(given, gradient)) == score


def test_a_wide_layer_is_scored_along_random_directions() -> None:
    layer = nn.Linear(MAX_INPUTS * 2, 4)
    given = randn(700, MAX_INPUTS * 2, seed=1)
    spec = LayerSpec.of("wide", layer, given)
    gradient = torch.relu(randn(700, 4, seed=2))
    assert 0 < float(GrowthProbe(spec).score(given, gradient)) <= float((gradient**2).sum())


def test_a_part_of_the_rows_represents_all_of_them() -> None:
    spec = LayerSpec.of("0", nn.Linear(3, 2), torch.zeros(1, 3))
    given, gradient = randn(1000, 3, seed=1), randn(1000, 2, seed=2)
    gradient = gradient + torch.relu(given @ randn(3, 2, seed=3))
    whole = float(GrowthProbe(spec).score(given, gradient))
    twice = float(GrowthProbe(spec).score(given.repeat(4, 1), gradient.repeat(4, 1)))
    assert twice == pytest.approx(4 * whole, rel=0.1)


def test_every_fourth_position_of_a_long_sequence_represents_all_of_them() -> None:
    module = nn.Conv1d(1, 2, 3, padding=1)
    given, gradient = randn(8, 1, 500, seed=1), randn(8, 2, 500, seed=2)
    gradient = 0.1 * gradient + torch.relu(given)
    probe = GrowthProbe(LayerSpec.of("long", module, given))
    x, d = probe.rows(given, gradient)
    weight, bias, _ = probe._features(x.device)
    whole = float(growth_score(x, d, torch.relu(torch.addmm(bias, x, weight))))
    assert float(probe.score(given, gradient)) == pytest.approx(whole, rel=0.2)


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_score_does_not_depend_on_the_dtype(name: str, dtype: torch.dtype) -> None:
    spec = spec_of(name)
    given, gradient = (t.to(dtype) for t in spec.sample(32, generator=torch.Generator().manual_seed(0)))
    score = GrowthProbe(spec).score(given, gradient)
    assert score.dtype is torch.float32
    assert float(score) == float(GrowthProbe(spec).score(given.float(), gradient.float()))


def test_neither_the_default_dtype_nor_device_changes_a_score() -> None:
    spec = LayerSpec.of("0", nn.Linear(300, 2), torch.zeros(1, 300))
    given, gradient = randn(40, 300, seed=1), randn(40, 2, seed=2)
    expected = float(GrowthProbe(spec).score(given, gradient))
    torch.set_default_dtype(torch.float64)
    try:
        assert float(GrowthProbe(spec).score(given, gradient)) == expected
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        probe = GrowthProbe(spec)
        probe._features(torch.device("cpu"))
    assert float(probe.score(given, gradient)) == expected


def test_autocast_does_not_reach_a_score() -> None:
    spec = spec_of("conv2d")
    given, gradient = spec.sample(32, generator=torch.Generator().manual_seed(0))
    expected = float(GrowthProbe(spec).score(given, gradient))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(GrowthProbe(spec).score(given, gradient)) == expected


@pytest.mark.parametrize("name", [name for name in ALL if name != "linear_sequence" and name != "transposed_linear"])
def test_one_sample_without_a_batch_scores_as_a_batch_of_one(name: str) -> None:
    spec = spec_of(name)
    given, gradient = spec.sample(1, generator=torch.Generator().manual_seed(0))
    alone = float(GrowthProbe(spec).score(given[0], gradient[0]))
    assert alone == float(GrowthProbe(spec).score(given, gradient))
    assert alone >= 0


def test_attention_scores_alike_in_both_layouts() -> None:
    spec = spec_of("attention")
    given, gradient = spec.sample(32, generator=torch.Generator().manual_seed(0))
    score = float(GrowthProbe(spec).score(given, gradient))
    length_first = GrowthProbe(spec).score(given.transpose(0, 1), gradient.transpose(0, 1))
    assert float(length_first) == pytest.approx(score, rel=1e-4)
    assert score == pytest.approx(float(GrowthProbe(spec).score(given.flatten(0, 1), gradient.flatten(0, 1))), rel=1e-4)


def test_a_part_of_the_positions_of_attention_represents_all_of_them() -> None:
    spec = spec_of("attention")
    given, gradient = randn(300, 20, 8, seed=1), randn(300, 20, 8, seed=2)
    gradient = 0.1 * gradient + torch.relu(given)
    whole = float(growth_score(*rows_and_features(GrowthProbe(spec), given, gradient)))
    assert float(GrowthProbe(spec).score(given, gradient)) == pytest.approx(whole, rel=0.2)


def rows_and_features(probe: GrowthProbe, given: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, d = probe.rows(given, gradient)
    weight, bias, _ = probe._features(x.device)
    return x, d, torch.relu(torch.addmm(bias, x, weight))


@pytest.mark.parametrize("name", ["linear", "conv2d", "up1d", "attention"])
def test_an_empty_batch_has_no_score(name: str) -> None:
    spec = spec_of(name)
    assert math.isnan(float(GrowthProbe(spec).score(*spec.sample(0))))


@pytest.mark.parametrize("name", ["linear", "conv2d", "up1d", "conv3d", "attention"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e25, 3e38])
@pytest.mark.parametrize("where", ["input", "gradient"])
def test_values_that_cannot_be_squared_give_no_score(name: str, value: float, where: str) -> None:
    spec = spec_of(name)
    given, gradient = spec.sample(32, generator=torch.Generator().manual_seed(0))
    (given if where == "input" else gradient)[:] = value
    assert not math.isfinite(float(GrowthProbe(spec).score(given, gradient)))
    one, of_many = spec.sample(32, generator=torch.Generator().manual_seed(0))
    (one if where == "input" else of_many)[1, 0] = value
    assert not math.isfinite(float(GrowthProbe(spec).score(one, of_many)))


def test_values_out_of_float32s_range_give_no_score() -> None:
    spec = spec_of("linear")
    given, gradient = (t.double() for t in spec.sample(32))
    assert not math.isfinite(float(GrowthProbe(spec).score(given * 1e300, gradient)))


@pytest.mark.parametrize("name", ["linear", "linear_sequence", "conv1d", "up2d"])
def test_a_gradient_of_another_output_is_refused(name: str) -> None:
    spec = spec_of(name)
    given, gradient = spec.sample(32)
    with pytest.raises(KernelError, match="is not that of a"):
        GrowthProbe(spec).score(given, torch.cat([gradient, gradient], dim=-1))
    with pytest.raises(KernelError, match="is not that of a"):
        GrowthProbe(spec).score(given, gradient[:5])


def test_a_layer_that_is_only_observed_has_no_score() -> None:
    spec = LayerSpec.of("norm", nn.LayerNorm(4), torch.zeros(2, 4))
    assert math.isnan(float(GrowthProbe(spec).score(torch.randn(8, 4), torch.randn(8, 4))))


def test_a_volume_is_not_copied_whole() -> None:
    module = nn.Conv3d(4, 2, 5, padding=2)
    given, gradient = torch.randn(8, 4, 24, 24, 24), torch.randn(8, 2, 24, 24, 24)
    spec = LayerSpec.of("volume", module, given)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        assert float(GrowthProbe(spec).score(given, gradient)) >= 0
    largest = max(event.self_cpu_memory_usage for event in found.events())
    # all rows would be 8 x 24^3 x 500 values, 221 MB
    assert largest < 8 * 2**20
