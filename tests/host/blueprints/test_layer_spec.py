"""A layer's spec: what is seen of a module, and what is refused."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tamiyo.host.blueprints.layer_spec import LayerSpec
from tamiyo.schemas.errors import KernelIncompatible
from tests.support.layers import GEOMETRIES, spec_of


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


@pytest.mark.parametrize("name", GEOMETRIES)
def test_json_restores_the_same_spec(name: str) -> None:
    spec = spec_of(name)
    assert LayerSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("name", GEOMETRIES)
def test_samples_have_the_layers_shapes_and_dtype(name: str) -> None:
    module, _ = GEOMETRIES[name]
    spec = spec_of(name)
    layer_input, layer_output = spec.sample(3)
    assert layer_input.dtype is spec.torch_dtype
    assert module(layer_input).shape == layer_output.shape


def test_other_modules_and_inputs_are_refused() -> None:
    with pytest.raises(KernelIncompatible, match="got BatchNorm1d"):
        LayerSpec.of("x", nn.BatchNorm1d(3), torch.zeros(2, 3))
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
