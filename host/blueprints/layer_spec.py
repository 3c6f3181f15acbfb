"""What a kernel has to fit: the shape of one layer, as plain JSON-able facts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from tamiyo.schemas.errors import KernelIncompatible

LayerType = Literal["linear", "conv1d", "conv2d"]
LAYER_TYPES: tuple[str, ...] = get_args(LayerType)
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Larger than any layer a kernel is worth building for; keeps a hostile spec from asking for terabytes.
_LARGEST = 1 << 24


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Geometry of a Linear, Conv1d or Conv2d layer, and the shapes it was seen to take and give.

    `in_features` and `out_features` are channels where the layer is a convolution; `kernel_size`, `stride` and
    `dilation` have one entry a spatial dimension and are empty for Linear. The sample shapes leave the batch out.
    """

    layer_id: str
    type: LayerType
    in_features: int
    out_features: int
    sample_input_shape: tuple[int, ...]
    sample_output_shape: tuple[int, ...]
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Raises KernelIncompatible where the facts contradict each other."""
        for problem in self._problems():
            raise KernelIncompatible(f"layer {self.layer_id!r}: {problem}")

    def _problems(self) -> list[str]:
        problems = []
        if self.type not in LAYER_TYPES:
            return [f"type {self.type!r} is none of {', '.join(LAYER_TYPES)}"]
        if self.dtype not in DTYPES:
            problems.append(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        sizes = (self.in_features, self.out_features, self.groups, *self.kernel_size, *self.stride, *self.dilation)
        if not all(0 < n <= _LARGEST for n in (*sizes, *self.sample_input_shape, *self.sample_output_shape)):
            problems.append(f"every size must be in 1..{_LARGEST}")
        if math.prod(self.sample_input_shape) > _LARGEST or math.prod(self.sample_output_shape) > _LARGEST:
            problems.append(f"a sample may hold at most {_LARGEST} values")
        n = self.spatial_dims
        if any(len(v) != n for v in (self.kernel_size, self.stride, self.dilation)):
            problems.append(f"kernel_size, stride and dilation of a {self.type} have {n} entries")
        if isinstance(self.padding, str):
            if not n or self.padding not in ("same", "valid"):
                problems.append(f"padding {self.padding!r} is neither 'same' nor 'valid'")
        elif len(self.padding) != n or any(not 0 <= p <= _LARGEST for p in self.padding):
            problems.append(f"padding of a {self.type} has {n} entries, none below 0")
        if self.padding_mode not in PADDING_MODES:
            problems.append(f"padding_mode {self.padding_mode!r} is none of {', '.join(PADDING_MODES)}")
        if self.groups > 0 and (self.in_features % self.groups or self.out_features % self.groups):
            problems.append(f"{self.groups} groups do not divide {self.in_features} and {self.out_features} channels")
        problems += self._shape_problems()
        return problems

    def _shape_problems(self) -> list[str]:
        shapes = (self.sample_input_shape, self.sample_output_shape)
        if self.type == "linear":
            fits = all(shapes) and shapes[0][-1] == self.in_features and shapes[1][-1] == self.out_features
            fits = fits and shapes[0][:-1] == shapes[1][:-1]
        else:
            fits = all(len(shape) == self.spatial_dims + 1 for shape in shapes)
            fits = fits and shapes[0][0] == self.in_features and shapes[1][0] == self.out_features
        return [] if fits else [f"sample shapes {shapes[0]} -> {shapes[1]} are not those of this {self.type}"]

    @property
    def spatial_dims(self) -> int:
        """0 for Linear, 1 for Conv1d, 2 for Conv2d."""
        return {"linear": 0, "conv1d": 1, "conv2d": 2}.get(self.type, 0)

    @property
    def positions(self) -> int:
        """Places in one sample's output that the layer computes its features at (multiplies any cost)."""
        shape = self.sample_output_shape
        return math.prod(shape[1:]) if self.spatial_dims else math.prod(shape[:-1])

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch dtype that `dtype` names."""
        return DTYPES[self.dtype]

    def sample(self, batch: int = 2, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random (layer input, layer output) of shapes [batch, *sample shape], to try a kernel on."""
        return (
            torch.randn(batch, *self.sample_input_shape, generator=generator).to(self.torch_dtype),
            torch.randn(batch, *self.sample_output_shape, generator=generator).to(self.torch_dtype),
        )

    def fits(self, other: LayerSpec) -> str | None:
        """None if a kernel built for this spec can run at `other`, else the first fact that differs.

        The layer's name and the sample's spatial extent do not matter: a convolution takes any length.
        """
        for name in (
            "type", "in_features", "out_features", "kernel_size", "stride", "padding", "dilation", "groups",
            "padding_mode", "dtype",
        ):  # fmt: skip
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} is {mine!r}, the layer's is {theirs!r}"
        return None

    @classmethod
    def of(cls, layer_id: str, module: nn.Module, sample_input: Tensor) -> Self:
        """The spec of a Linear, Conv1d or Conv2d that was given `sample_input` [batch, ...].

        Raises KernelIncompatible for any other module, or an input that the module cannot take.
        """
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) or not isinstance(weight, Tensor):
            raise KernelIncompatible(
                f"layer {layer_id!r}: expected Linear, Conv1d or Conv2d, got {type(module).__name__}"
            )
        sample = sample_input.detach()[:1].to(weight.device, weight.dtype)
        try:
            with torch.no_grad():
                output = module.forward(sample)
        except (RuntimeError, IndexError) as error:
            raise KernelIncompatible(
                f"layer {layer_id!r}: cannot take an input of shape {tuple(sample_input.shape)}: {error}"
            ) from error
        shapes: dict[str, Any] = {
            "sample_input_shape": tuple(sample.shape[1:]),
            "sample_output_shape": tuple(output.shape[1:]),
        }
        dtype = str(weight.dtype).removeprefix("torch.")
        if isinstance(module, nn.Linear):
            return cls(layer_id, "linear", module.in_features, module.out_features, dtype=dtype, **shapes)
        padding = module.padding if isinstance(module.padding, str) else tuple(module.padding)
        return cls(
            layer_id,
            "conv1d" if isinstance(module, nn.Conv1d) else "conv2d",
            module.in_channels,
            module.out_channels,
            kernel_size=tuple(module.kernel_size),
            stride=tuple(module.stride),
            padding=padding,
            dilation=tuple(module.dilation),
            groups=module.groups,
            padding_mode=module.padding_mode,
            dtype=dtype,
            **shapes,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able facts; `from_dict` reads them back."""
        out: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            out[field.name] = list(value) if isinstance(value, tuple) else value
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """A spec from JSON. Raises KernelIncompatible where a field is missing, unknown or of a wrong type."""
        types = {f.name: str(f.type) for f in fields(cls)}
        unknown = sorted(set(data) - set(types))
        if unknown:
            raise KernelIncompatible(f"a layer spec has no field {', '.join(map(str, unknown))}")
        values: dict[str, Any] = {}
        for name, value in data.items():
            if isinstance(value, list):
                value = tuple(value)
            if not _is_of(types[name], value):
                raise KernelIncompatible(f"layer spec: {name} should be {types[name]}, got {value!r}")
            values[name] = value
        try:
            return cls(**values)
        except TypeError as error:
            raise KernelIncompatible(f"layer spec is incomplete: {error}") from error


def _is_of(annotation: str, value: object) -> bool:
    integers = isinstance(value, tuple) and all(type(v) is int for v in value)
    if annotation == "int":
        return type(value) is int
    if annotation.startswith("tuple"):
        return integers or ("str" in annotation and isinstance(value, str))
    return isinstance(value, str)
