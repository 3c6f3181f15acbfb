"""The growth score against its definition, and the rows it is computed from against the layers themselves."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tamiyo.host.blueprints.layer_spec import LayerSpec
from tamiyo.host.probes.growth_score import MAX_INPUTS, GrowthProbe, growth_score
from tests.support.layers import GEOMETRIES, random_input, spec_of


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


@pytest.mark.parametrize("name", [name for name in GEOMETRIES if "groups" not in name and "depthwise" not in name])
def test_rows_are_the_inputs_that_each_output_was_computed_from(name: str) -> None:
    module, _ = GEOMETRIES[name]
    spec = spec_of(name)
    given = random_input(spec).float()
    output = module.float()(given) if spec.dtype != "float64" else module.double()(given.double()).float()
    x, d = GrowthProbe(spec).rows(given, output)
    weight = module.weight.detach().float().flatten(1)  # type: ignore[operator, union-attr]
    bias = 0.0 if module.bias is None else module.bias.detach().float()  # type: ignore[union-attr]
    torch.testing.assert_close(x @ weight.T + bias, d, rtol=1e-4, atol=1e-5)


def test_rows_of_an_even_kernel_are_padded_more_at_the_end() -> None:
    module, given = nn.Conv1d(2, 3, 4, padding="same"), randn(3, 2, 9, seed=1)
    spec = LayerSpec.of("even", module, given)
    x, d = GrowthProbe(spec).rows(given, module(given).detach())
    expected = x @ module.weight.detach().flatten(1).T + module.bias.detach()  # type: ignore[union-attr]
    torch.testing.assert_close(expected, d, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(GEOMETRIES))
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
    whole = float(growth_score(x, d, torch.relu(torch.addmm(probe._bias, x, probe._weight))))
    assert float(probe.score(given, gradient)) == pytest.approx(whole, rel=0.2)
