"""The geometry of a layer, which a kernel must fit, as JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn

from tamiyo.host.blueprints._layer_kinds import (
    CHANNELS_LAST,
    LAYER_TYPES,
    OBSERVED,
    SPATIAL_DIMS,
    LayerType,
    features,
    has_lazy_parameters,
    layer_output,
    layer_type,
    weight_of,
)
from tamiyo.schemas.errors import KernelIncompatible

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Larger than any real layer; a hostile spec cannot request terabytes.
_LARGEST = 1 << 24
_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_MOST_DIMS = 8  # of a sample, as in the topology record
_UNBATCHED_DIMS = {"linear": 1, "attention": 2, **{kind: dims + 1 for kind, dims in SPATIAL_DIMS.items()}}
"""Dimensions of an input without a batch, of the layers of torch that take one."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Geometry of a layer, and the shapes of an example of its input and output.

    Attributes:
        layer_id: Name of the layer.
        type: "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d" or
            "attention"; or, of a layer that is only observed, "layer_norm", "channel_norm" or "embedding".
        in_features: Inputs, or input channels; of attention, the query's features.
        out_features: Outputs, or output channels.
        sample_input_shape: Shape of one sample's input, without the batch.
        sample_output_shape: Shape of one sample's output, without the batch.
        kernel_size: One entry per spatial dimension; empty without any. Likewise `stride` and `dilation`.
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
        if max(len(self.sample_input_shape), len(self.sample_output_shape)) > _MOST_DIMS:
            problems.append(f"a sample may have at most {_MOST_DIMS} dimensions")
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
        taken, returned = self.sample_input_shape, self.sample_output_shape
        if self.type == "embedding":
            fits = returned == (*taken, self.out_features)
        elif self.channels_last:
            fits = taken[-1:] == (self.in_features,) and returned[-1:] == (self.out_features,)
            fits = fits and taken[:-1] == returned[:-1]
        else:
            fits = taken[:1] == (self.in_features,) and returned[:1] == (self.out_features,)
            fits = fits and (self.type in OBSERVED or len(taken) == len(returned) == self.spatial_dims + 1)
        return [] if fits else [f"sample shapes {taken} -> {returned} do not fit this {self.type}"]

    @property
    def spatial_dims(self) -> int:
        """Number of dimensions that a convolution slides over, 1 to 3; 0 of any other layer."""
        return SPATIAL_DIMS.get(self.type, 0)

    @property
    def growable(self) -> bool:
        """Whether kernels can grow at such a layer; norms and embeddings are only observed."""
        return self.type not in OBSERVED

    @property
    def channels_last(self) -> bool:
        """Whether features are the last dimension of the output; else they follow the batch."""
        return self.type in CHANNELS_LAST

    @property
    def transposed(self) -> bool:
        """Whether the layer is a transposed convolution."""
        return self.type.startswith("conv_transpose")

    @property
    def output_padding(self) -> tuple[int, ...]:
        """Of a transposed convolution, how much longer the output is than the input requires, per spatial dimension."""
        if not self.transposed:
            return ()
        return self.extra_outputs(self.sample_input_shape[1:], self.sample_output_shape[1:])

    def extra_outputs(self, taken: Sequence[int], returned: Sequence[int]) -> tuple[int, ...]:
        """Return how much longer a transposed convolution's output is than the shortest one for its input.

        Args:
            taken: The input's spatial shape.
            returned: The output's spatial shape.
        """
        assert not isinstance(self.padding, str)
        sizes = zip(taken, returned, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return tuple(n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for m, n, k, s, p, d in sizes)

    @property
    def positions(self) -> int:
        """Number of positions in one sample's output; every cost is per position."""
        shape = self.sample_output_shape
        return math.prod(shape[:-1] if self.channels_last else shape[1:])

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
        # The training process may have another default dtype and device.
        options: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
        return (
            torch.randn(batch, *self.sample_input_shape, **options).to(self.torch_dtype),
            torch.randn(batch, *self.sample_output_shape, **options).to(self.torch_dtype),
        )

    def batched(self, value: Tensor) -> Tensor:
        """Return an input or output of the layer with a batch dimension, which layers of torch can do without.

        Args:
            value: [batch, ...]; or without the batch: [features], [channels, *space], of attention [length, features].

        Returns:
            `value`, or a view of it as a batch of one.
        """
        return value.unsqueeze(0) if value.dim() == _UNBATCHED_DIMS.get(self.type) else value

    def batch(self, layer_input: Tensor) -> int:
        """Return the number of samples in an input of the layer; 1 without a batch, and 0 if that cannot be known.

        Args:
            layer_input: [batch, ...] or without a batch. Of attention either of two dimensions can be the batch.
        """
        if self.type == "attention":
            return 0
        return 1 if layer_input.dim() == _UNBATCHED_DIMS.get(self.type) else layer_input.shape[0]

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

        The module runs on the sample, in its own mode, unless the shapes follow from its type. The global random state
        does not change.

        Args:
            layer_id: Name of the layer.
            module: A layer of a known type, whose parameters have their shapes.
            sample_input: An input of it, [batch, ...] or without a batch; of attention the query, in its layout.

        Raises:
            KernelIncompatible: The module is of another type, or cannot take the input.
        """
        kind, weight = layer_type(module), weight_of(module)
        if kind is None or weight is None or has_lazy_parameters(module):
            raise KernelIncompatible(
                f"layer {layer_id!r}: expected Linear, a convolution or attention with its weight, "
                f"got {type(module).__name__}"
            )
        inputs, outputs = features(module)
        taken, returned = _sample_shapes(layer_id, kind, module, weight, sample_input)
        geometry: dict[str, Any] = {}
        if kind in SPATIAL_DIMS:
            geometry = {name: getattr(module, name) for name in _GEOMETRY}
            geometry = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in geometry.items()}
        dtype = str(weight.dtype).removeprefix("torch.")
        return cls(layer_id, kind, inputs, outputs, taken, returned, dtype=dtype, **geometry)

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


def _sample_shapes(
    layer_id: str, kind: LayerType, module: nn.Module, weight: Tensor, sample_input: Tensor
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of one sample's input and output. Raises KernelIncompatible if the module cannot run."""
    shape = tuple(sample_input.shape)
    if kind == "attention":
        batched_shape = shape[1:] if module.batch_first else (shape[0], *shape[2:])
        sample_shape = shape if len(shape) == 2 else batched_shape
        return sample_shape, sample_shape
    if kind in OBSERVED:
        # They do not run: a batch norm would count the sample.
        return shape[1:], (*shape[1:], *((features(module)[1],) if kind == "embedding" else ()))
    unbatched = len(shape) == (SPATIAL_DIMS[kind] + 1 if kind in SPATIAL_DIMS else 1)
    sample = (sample_input.detach().unsqueeze(0) if unbatched else sample_input.detach()[:1]).to(weight)
    devices = [weight.device] if weight.is_cuda else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):  # a subclass may have a dropout
            output = layer_output(module.forward(sample))
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise KernelIncompatible(f"layer {layer_id!r}: cannot take an input of shape {shape}: {error}") from error
    if not isinstance(output, Tensor):
        raise KernelIncompatible(f"layer {layer_id!r}: expected a tensor as its output, got {type(output).__name__}")
    return tuple(sample.shape[1:]), tuple(output.shape[1:])


def _is_of(annotation: str, value: object) -> bool:
    """Return whether a JSON value fits a field's annotation."""
    integers = isinstance(value, tuple) and all(type(v) is int for v in value)
    if annotation == "int":
        return type(value) is int
    if annotation.startswith("tuple"):
        return integers or ("str" in annotation and isinstance(value, str))
    return isinstance(value, str)
