"""The base classes of kernels and blueprints."""

from __future__ import annotations

import copy
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tamiyo.host.blueprints._layer_spec import LayerSpec

__all__ = ["PRESERVING", "Blueprint", "Kernel", "conv", "conv_transpose", "seed_of"]

PRESERVING = 1e-6
"""Largest change of any output value that loading a kernel may cause."""


class Kernel(nn.Module, ABC):
    """A small trainable module beside a layer: delta = last(hidden(layer input, layer output)).

    The delta has the shape of the layer's output and is added to it. `last` starts at zero, so a fresh kernel changes
    nothing (a zero-initialised residual branch). A subclass sets `last`, implements `hidden`, and keeps to three rules:
    its parts are torch.nn modules; its code is traceable by torch.fx, so that a grown model can be exported; and it has
    no batch statistics and no dropout, so that train and eval mode agree.
    """

    last: nn.Module
    """The zero-initialised projection."""

    @abstractmethod
    def hidden(self, layer_input: Tensor, layer_output: Tensor) -> Tensor:
        """Return the features that `last` projects; the growth score measures such features.

        Args:
            layer_input: Input of the layer, [batch, ...].
            layer_output: Output of the layer itself, without any kernel, [batch, ...].
        """

    def forward(self, layer_input: Tensor, layer_output: Tensor) -> Tensor:
        """Return what the kernel adds to the layer's output.

        Args:
            layer_input: Input of the layer, [batch, ...].
            layer_output: Output of the layer, [batch, ...].

        Returns:
            The delta, in the shape of `layer_output`.
        """
        delta: Tensor = self.last(self.hidden(layer_input, layer_output))
        return delta

    def zero_last(self) -> None:
        """Set the parameters of `last` to zero, so that the delta is 0 everywhere."""
        with torch.no_grad():
            for parameter in self.last.parameters():
                parameter.zero_()

    def reset(self, *, seed: int = 0) -> None:
        """Initialise the parameters anew, in place, with a zero delta.

        Args:
            seed: Decides the parameters. The global random state stays as it is.
        """
        fresh = copy.deepcopy(self).cpu()
        with _drawing(seed):
            for module in fresh.modules():
                reset_parameters = getattr(module, "reset_parameters", None)
                if callable(reset_parameters):
                    reset_parameters()
        with torch.no_grad():
            for parameter, value in zip(self.parameters(), fresh.parameters(), strict=True):
                parameter.copy_(value)
        self.zero_last()

    @property
    def parameter_count(self) -> int:
        """Number of trainable values in this kernel."""
        return sum(p.numel() for p in self.parameters())


class Blueprint(ABC):
    """A recipe for kernels. To add one, write a subclass and decorate it with `@register`.

    The training process and the kernels stage must both import the subclass: the stage builds kernels from it, the host
    rebuilds them from the store. The policy's actions follow the catalogue, so a new blueprint takes a new policy.

    Example:
        A blueprint for Linear layers that adds a scaled copy of the input's mean to every output:

        >>> import torch
        >>> from torch import Tensor, nn
        >>> from tamiyo.host import Blueprint, Kernel, LayerSpec
        >>> class MeanShiftKernel(Kernel):
        ...     def __init__(self, features: int) -> None:
        ...         super().__init__()
        ...         self.last = nn.Linear(1, features)
        ...
        ...     def hidden(self, layer_input: Tensor, layer_output: Tensor) -> Tensor:
        ...         return layer_input.mean(dim=-1, keepdim=True)
        >>> class MeanShift(Blueprint):
        ...     name = "mean_shift"
        ...
        ...     def supports(self, spec: LayerSpec) -> bool:
        ...         return spec.type == "linear"
        ...
        ...     def parameters(self, spec: LayerSpec) -> int:
        ...         return 2 * spec.out_features
        ...
        ...     def flops(self, spec: LayerSpec) -> int:
        ...         return spec.out_features * spec.positions
        ...
        ...     def make(self, spec: LayerSpec) -> Kernel:
        ...         return MeanShiftKernel(spec.out_features)
        >>> spec = LayerSpec.of("fc", nn.Linear(3, 5), torch.zeros(1, 3))
        >>> kernel = MeanShift().build(spec, seed=0)
        >>> kernel.parameter_count == MeanShift().parameters(spec)
        True
    """

    name: ClassVar[str]
    """Identifies the blueprint in decisions, features and stored kernels: never reuse a name for another recipe."""
    version: ClassVar[int] = 1
    """Increase it when stored kernels of the old recipe no longer load."""

    @abstractmethod
    def supports(self, spec: LayerSpec) -> bool:
        """Return whether a kernel of this kind can be built for a layer.

        Args:
            spec: Geometry of the layer.
        """

    @abstractmethod
    def parameters(self, spec: LayerSpec) -> int:
        """Return the exact number of parameters that `build` creates.

        Args:
            spec: Geometry of the layer.
        """

    @abstractmethod
    def flops(self, spec: LayerSpec) -> int:
        """Return the multiply-adds per sample of one forward pass through matrix products and convolutions.

        Args:
            spec: Geometry of the layer.
        """

    @abstractmethod
    def make(self, spec: LayerSpec) -> Kernel:
        """Return the kernel's modules; `build` handles the random seed, the zero projection and the dtype.

        Args:
            spec: Geometry of the layer.
        """

    def build(self, spec: LayerSpec, *, seed: int) -> Kernel:
        """Return a kernel for a layer.

        Args:
            spec: Geometry of the layer.
            seed: Decides the initial parameters; the same seed gives the same ones. The global random state stays as it
                is.

        Returns:
            The kernel on the CPU, in the layer's dtype, with a zero delta.
        """
        with _drawing(seed):
            kernel = self.make(spec)
        kernel.zero_last()
        return kernel.to(spec.torch_dtype)


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Draw the CPU's random numbers from `seed` inside the context; the streams of all devices stay as they are."""
    # torch.manual_seed would seed the GPUs too. A default device of the training process must not matter either.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def conv(spec: LayerSpec, in_channels: int, out_channels: int, **geometry: Any) -> nn.Module:
    """Return a Conv1d, Conv2d or Conv3d, by the spec's spatial dimensions; `geometry` is passed on to torch."""
    kinds: list[type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
    return kinds[spec.spatial_dims - 1](in_channels, out_channels, **geometry)


def conv_transpose(spec: LayerSpec, in_channels: int, out_channels: int, **geometry: Any) -> nn.Module:
    """Return a ConvTranspose1d, 2d or 3d, by the spec's spatial dimensions; `geometry` is passed on to torch."""
    kinds: list[type[nn.ConvTranspose1d] | type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = [
        nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    ]  # fmt: skip
    return kinds[spec.spatial_dims - 1](in_channels, out_channels, **geometry)


def seed_of(kernel_id: str) -> int:
    """Return the random seed of a kernel id, so that a kernel compiled again is the same kernel."""
    return zlib.crc32(kernel_id.encode())
