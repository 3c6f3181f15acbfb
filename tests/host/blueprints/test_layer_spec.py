"""A layer's spec: what is seen of a module, and what is refused."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tamiyo.host import LayerSpec
from tamiyo.host.blueprints import CATALOGUE, for_layer
from tamiyo.host.blueprints._layer_kinds import run_layer
from tamiyo.schemas.errors import KernelIncompatible
from tests.support.layers import ALL, GEOMETRIES, spec_of


def test_a_convolution_is_described_exactly() -> None:
    spec = spec_of("conv2d_groups", "features.3")
    assert spec == LayerSpec(
        layer_id="features.3",
        type="conv2d",
        in_features=4,
        out_features=6,
        sample_input_shape=(4, 9, 5),
        sample_output_shape=(6, 4, 5),
        kernel_size=(3, 1),
        stride=(2, 1),
        padding=(0, 0),
        dilation=(1, 2),
        groups=2,
    )
    assert (spec.spatial_dims, spec.positions) == (2, 20)


def test_a_linear_layer_over_a_sequence_has_a_position_a_token() -> None:
    spec = spec_of("linear_sequence")
    assert (spec.sample_input_shape, spec.sample_output_shape) == ((4, 5), (4, 7))
    assert (spec.spatial_dims, spec.positions) == (0, 4)


@pytest.mark.parametrize("name", ALL)
def test_json_restores_the_same_spec(name: str) -> None:
    spec = spec_of(name)
    assert LayerSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("name", ALL)
def test_samples_have_the_layers_shapes_and_dtype(name: str) -> None:
    module, _ = ALL[name]
    spec = spec_of(name)
    layer_input, layer_output = spec.sample(3)
    assert layer_input.dtype is spec.torch_dtype
    assert run_layer(module, layer_input).shape == layer_output.shape


def test_other_modules_and_inputs_are_refused() -> None:
    with pytest.raises(KernelIncompatible, match="got ReLU"):
        LayerSpec.of("x", nn.ReLU(), torch.zeros(2, 3))
    with pytest.raises(KernelIncompatible, match="got LayerNorm"):
        LayerSpec.of("x", nn.LayerNorm(3, elementwise_affine=False), torch.zeros(2, 3))
    with pytest.raises(KernelIncompatible, match="got LazyLinear"):
        LayerSpec.of("x", nn.LazyLinear(3), torch.zeros(2, 3))
    with pytest.raises(KernelIncompatible, match="at most 8 dimensions"):
        LayerSpec.of("x", nn.Linear(3, 3), torch.zeros(2, 1, 1, 1, 1, 1, 1, 1, 1, 3))
    with pytest.raises(KernelIncompatible, match=r"\(2, 3\) -> \(2, 3\) do not fit this attention"):
        LayerSpec.of("x", nn.MultiheadAttention(4, 1), torch.zeros(2, 3))
    with pytest.raises(KernelIncompatible, match=r"cannot take an input of shape \(2, 4\)"):
        LayerSpec.of("x", nn.Linear(3, 3), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "lstm"}, "type must be one of .*, got 'lstm'"),
        ({"dtype": "complex64"}, "dtype must be one of .*, got 'complex64'"),
        ({"in_features": 0}, "every size must be in"),
        ({"in_features": 2**40}, "every size must be in"),
        ({"kernel_size": [5, 5]}, "must have 1 entries"),
        ({"padding": "full"}, "padding must be 'same' or 'valid' or numbers"),
        ({"padding": [-1]}, "none below 0"),
        ({"padding_mode": "mirror"}, "padding_mode must be one of .*, got 'mirror'"),
        ({"groups": 4}, "4 groups do not divide 2 and 6"),
        ({"sample_input_shape": [3, 20]}, "do not fit this conv1d"),
        ({"sample_input_shape": [2, 2**24]}, "a sample may have at most"),
        ({"out_features": "6"}, "out_features must be int, got '6'"),
        ({"groups": True}, "groups must be int, got True"),
        ({"stride": [1.5]}, "stride must be"),
        ({"layer_id": None}, "layer_id must be str"),
        ({"bias": True}, "has no field bias"),
    ],
)
def test_hostile_json_is_refused_with_the_reason(changes: dict[str, object], message: str) -> None:
    with pytest.raises(KernelIncompatible, match=message):
        LayerSpec.from_dict(spec_of("conv1d").to_dict() | changes)


def test_a_transposed_convolution_is_described_exactly() -> None:
    spec = spec_of("up2d")
    assert spec == LayerSpec(
        layer_id="layer",
        type="conv_transpose2d",
        in_features=3,
        out_features=4,
        sample_input_shape=(3, 5, 4),
        sample_output_shape=(4, 12, 16),
        kernel_size=(3, 5),
        stride=(2, 3),
        padding=(1, 0),
        dilation=(2, 1),
    )
    assert (spec.spatial_dims, spec.positions, spec.output_padding) == (2, 192, (1, 2))


def test_attention_is_described_by_its_query_in_any_layout() -> None:
    specs = {name: spec_of(name) for name in ("attention", "attention_length_first", "attention_other_sizes")}
    assert {(s.type, s.in_features, s.out_features, s.sample_input_shape) for s in specs.values()} == {
        ("attention", 8, 8, (5, 8))
    }
    assert LayerSpec.of("layer", nn.MultiheadAttention(8, 2), torch.zeros(5, 8)) == specs["attention"]


@pytest.mark.parametrize(
    "name", [name for name in GEOMETRIES if name not in ("linear_sequence", "transposed_linear", "conv2d_double")]
)
def test_an_example_without_a_batch_gives_the_same_spec(name: str) -> None:
    module, example = GEOMETRIES[name]
    assert LayerSpec.of("layer", module, example[0]) == spec_of(name)


def test_describing_a_layer_changes_neither_it_nor_the_random_state() -> None:
    class Dropping(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.dropout(input, 0.5, train=True))

    norm, linear, state = nn.BatchNorm1d(3), Dropping(3, 3), torch.get_rng_state()
    expected = torch.rand(3)
    torch.set_rng_state(state)
    LayerSpec.of("fc", linear, torch.zeros(2, 3))
    LayerSpec.of("norm", norm, torch.ones(4, 3))
    assert torch.equal(torch.rand(3), expected)
    assert int(norm.num_batches_tracked) == 0  # type: ignore[arg-type]


def test_a_layer_that_returns_more_than_its_output_is_described_by_that() -> None:
    class WithBias(nn.Linear):
        def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
            return input @ self.weight.T, self.bias

    assert LayerSpec.of("fc", WithBias(3, 5), torch.zeros(2, 3)).sample_output_shape == (5,)


@pytest.mark.parametrize(
    ("module", "example", "kind", "shapes"),
    [
        (nn.LayerNorm(4), torch.zeros(2, 3, 4), "layer_norm", ((3, 4), (3, 4))),
        (nn.LayerNorm((3, 4)), torch.zeros(2, 3, 4), "layer_norm", ((3, 4), (3, 4))),
        (nn.RMSNorm(4), torch.zeros(2, 4), "layer_norm", ((4,), (4,))),
        (nn.BatchNorm2d(3), torch.zeros(2, 3, 4, 4), "channel_norm", ((3, 4, 4), (3, 4, 4))),
        (nn.GroupNorm(2, 6), torch.zeros(2, 6, 5), "channel_norm", ((6, 5), (6, 5))),
        (nn.Embedding(9, 4), torch.zeros(2, 5, dtype=torch.int64), "embedding", ((5,), (5, 4))),
        (nn.Embedding(9, 4), torch.zeros(2, dtype=torch.int64), "embedding", ((), (4,))),
    ],
    ids=str,
)
def test_norms_and_embeddings_are_described_and_cannot_grow(
    module: nn.Module, example: torch.Tensor, kind: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    spec = LayerSpec.of("layer", module, example)
    assert (spec.type, spec.sample_input_shape, spec.sample_output_shape) == (kind, *shapes)
    assert for_layer(spec) == ()
    assert not any(recipe.supports(spec) for recipe in CATALOGUE.values())
    assert LayerSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_the_batch_of_an_input_is_counted_with_and_without_one() -> None:
    assert spec_of("linear").batch(torch.zeros(6, 5)) == spec_of("linear").batch(torch.zeros(6, 3, 5)) == 6
    assert spec_of("linear").batch(torch.zeros(5)) == 1
    assert spec_of("conv2d").batch(torch.zeros(6, 3, 8, 8)) == 6
    assert spec_of("conv2d").batch(torch.zeros(3, 8, 8)) == 1
    assert spec_of("attention").batch(torch.zeros(6, 5, 8)) == 0


def test_incomplete_json_is_refused() -> None:
    data = spec_of("conv1d").to_dict()
    del data["out_features"]
    with pytest.raises(KernelIncompatible, match=r"incomplete.*out_features"):
        LayerSpec.from_dict(data)


@pytest.mark.parametrize(
    "change",
    [
        {"kernel_size": (3,)},
        {"stride": (2,)},
        {"padding": (1,)},
        {"dilation": (2,)},
        {"groups": 2},
        {"padding_mode": "reflect"},
        {"dtype": "float64"},
    ],
    ids=str,
)
def test_every_difference_in_geometry_is_one(change: dict[str, Any]) -> None:
    spec = spec_of("conv1d")
    (name,) = change
    assert (spec.fits(replace(spec, **change)) or "").startswith(f"{name} is ")


def test_fits_ignores_names_and_lengths_only() -> None:
    spec = spec_of("conv1d")
    longer = LayerSpec.of("other", GEOMETRIES["conv1d"][0], torch.zeros(1, 2, 40))
    assert spec.fits(longer) is None
    assert spec.fits(spec_of("conv1d_stride")) == "stride is (1,), the layer's is (2,)"
    assert spec.fits(spec_of("linear")) == "type is 'conv1d', the layer's is 'linear'"
