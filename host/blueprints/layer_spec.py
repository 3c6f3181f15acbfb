"""The geometry of a layer, which a kernel must fit, as JSON values."""

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

# Larger than any real layer; a hostile spec cannot request terabytes.
_LARGEST = 1 << 24


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Geometry of a Linear, Conv1d or Conv2d layer, and the shapes of an example of its input and output.

    Attributes:
        layer_id: Name of the layer.
        type: "linear", "conv1d" or "conv2d".
        in_features: Inputs, or input channels.
        out_features: Outputs, or output channels.
        sample_input_shape: Shape of one sample's input, without the batch.
        sample_output_shape: Shape of one sample's output, without the batch.
        kernel_size: One entry per spatial dimension; empty for Linear. Likewise `stride` and `dilation`.
        padding: One entry per spatial dimension, or "same" or "valid".
        groups: Groups of the convolution.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        dtype: "float32", "float64", "float16" or "bfloat16".
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
        """Raise KernelIncompatible if the values contradict each other."""
        for problem in self._problems():
            raise KernelIncompatible(f"layer {self.layer_id!r}: {problem}")

    def _problems(self) -> list[str]:
        problems = []
        if self.type not in LAYER_TYPES:
            return [f"type must be one of {', '.join(LAYER_TYPES)}, got {self.type!r}"]
        if self.dtype not in DTYPES:
            problems.append(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        sizes = (self.in_features, self.out_features, self.groups, *self.kernel_size, *self.stride, *self.dilation)
        if not all(0 < n <= _LARGEST for n in (*sizes, *self.sample_input_shape, *self.sample_output_shape)):
            problems.append(f"every size must be in 1..{_LARGEST}")
        if math.prod(self.sample_input_shape) > _LARGEST or math.prod(self.sample_output_shape) > _LARGEST:
            problems.append(f"a sample may have at most {_LARGEST} values")
        n = self.spatial_dims
        if any(len(v) != n for v in (self.kernel_size, self.stride, self.dilation)):
            problems.append(f"kernel_size, stride and dilation of a {self.type} must have {n} entries")
        if isinstance(self.padding, str):
            if not n or self.padding not in ("same", "valid"):
                problems.append(f"padding must be 'same' or 'valid' or numbers, got {self.padding!r}")
        elif len(self.padding) != n or any(not 0 <= p <= _LARGEST for p in self.padding):
            problems.append(f"padding of a {self.type} must have {n} entries, none below 0")
        if self.padding_mode not in PADDING_MODES:
            problems.append(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {self.padding_mode!r}")
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
        return [] if fits else [f"sample shapes {shapes[0]} -> {shapes[1]} do not fit this {self.type}"]

    @property
    def spatial_dims(self) -> int:
        """0 for Linear, 1 for Conv1d, 2 for Conv2d."""
        return {"linear": 0, "conv1d": 1, "conv2d": 2}.get(self.type, 0)

    @property
    def positions(self) -> int:
        """Number of positions in one sample's output; every cost is per position."""
        shape = self.sample_output_shape
        return math.prod(shape[1:]) if self.spatial_dims else math.prod(shape[:-1])

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch dtype that `dtype` names."""
        return DTYPES[self.dtype]

    def sample(self, batch: int = 2, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return a random (layer input, layer output), to test a kernel.

        Args:
            batch: Samples in both.
            generator: Source of the random numbers. Default: torch's global one.

        Returns:
            Tensors of shapes [batch, *sample_input_shape] and [batch, *sample_output_shape], in the layer's dtype.
        """
        return (
            torch.randn(batch, *self.sample_input_shape, generator=generator).to(self.torch_dtype),
            torch.randn(batch, *self.sample_output_shape, generator=generator).to(self.torch_dtype),
        )

    def fits(self, other: LayerSpec) -> str | None:
        """Return None if a kernel built for this spec can run at another, else the first difference.

        The layer's name and the sample's spatial extent are ignored: a convolution takes any length.

        Args:
            other: Geometry of the layer that the kernel is meant for.
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
        """Return the spec of a module.

        Args:
            layer_id: Name of the layer.
            module: A Linear, Conv1d or Conv2d.
            sample_input: An input of it, [batch, ...].

        Raises:
            KernelIncompatible: The module is of another type, or cannot take the input.
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
        """Return the spec as JSON values; `from_dict` reads them back."""
        out: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            out[field.name] = list(value) if isinstance(value, tuple) else value
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read `to_dict`'s result. Raises KernelIncompatible if a field is missing, unknown or of a wrong type."""
        types = {f.name: str(f.type) for f in fields(cls)}
        unknown = sorted(set(data) - set(types))
        if unknown:
            raise KernelIncompatible(f"a layer spec has no field {', '.join(map(str, unknown))}")
        values: dict[str, Any] = {}
        for name, value in data.items():
            if isinstance(value, list):
                value = tuple(value)
            if not _is_of(types[name], value):
                raise KernelIncompatible(f"layer spec: {name} must be {types[name]}, got {value!r}")
            values[name] = value
        try:
            return cls(**values)
        except TypeError as error:
            raise KernelIncompatible(f"layer spec is incomplete: {error}") from error


def _is_of(annotation: str, value: object) -> bool:
    """Return whether a JSON value fits a field's annotation."""
    integers = isinstance(value, tuple) and all(type(v) is int for v in value)
    if annotation == "int":
        return type(value) is int
    if annotation.startswith("tuple"):
        return integers or ("str" in annotation and isinstance(value, str))
    return isinstance(value, str)
