"""What a kernel and a blueprint are."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tamiyo.host.blueprints.layer_spec import LayerSpec

PRESERVING = 1e-6
"""Loading a kernel may change no output of its layer by more than this."""


class Kernel(nn.Module, ABC):
    """A small trainable module beside a layer: delta = `last`(`hidden`(layer input, layer output)).

    The delta, of the shape of the layer's output, is added to it. `last` starts at zero, so a fresh kernel
    changes nothing. Parts are torch.nn modules only and the code is traceable by torch.fx, which is what lets a
    grown model be exported without Tamiyo. No batch statistics and no dropout: train and eval mode agree.
    """

    last: nn.Module
    """The zero-initialised projection."""

    @abstractmethod
    def hidden(self, layer_input: Tensor, layer_output: Tensor) -> Tensor:
        """The features that `last` projects (what the growth score measures)."""

    def forward(self, layer_input: Tensor, layer_output: Tensor) -> Tensor:
        """The delta, of the shape of `layer_output`."""
        delta: Tensor = self.last(self.hidden(layer_input, layer_output))
        return delta

    def zero_last(self) -> None:
        """Make the delta 0 everywhere."""
        with torch.no_grad():
            for parameter in self.last.parameters():
                parameter.zero_()

    def reset(self, *, seed: int = 0) -> None:
        """Fresh parameters with a zero delta, in place; the global random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in self.modules():
                reset_parameters = getattr(module, "reset_parameters", None)
                if callable(reset_parameters):
                    reset_parameters()
        self.zero_last()

    @property
    def parameter_count(self) -> int:
        """Trainable numbers in this kernel."""
        return sum(p.numel() for p in self.parameters())


class Blueprint(ABC):
    """A recipe for kernels. Adding one to the catalogue is one subclass with `@register`."""

    name: ClassVar[str]
    """On the wire, in decisions and in features: never reuse a name for another thing."""
    version: ClassVar[int] = 1
    """Raise it when stored kernels of the old recipe no longer load."""

    @abstractmethod
    def supports(self, spec: LayerSpec) -> bool:
        """Whether a kernel of this kind can sit at such a layer."""

    @abstractmethod
    def parameters(self, spec: LayerSpec) -> int:
        """Exactly how many parameters `build` would make."""

    @abstractmethod
    def flops(self, spec: LayerSpec) -> int:
        """Multiply-adds a sample, forward, of the kernel's matrix products and convolutions."""

    @abstractmethod
    def make(self, spec: LayerSpec) -> Kernel:
        """The kernel's modules; `build` adds the seed, the zero and the dtype."""

    def build(self, spec: LayerSpec, *, seed: int) -> Kernel:
        """A kernel for `spec` in its dtype on the CPU: same seed, same parameters; global random state untouched."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            kernel = self.make(spec)
        kernel.zero_last()
        return kernel.to(spec.torch_dtype)


def conv(spec: LayerSpec, in_channels: int, out_channels: int, **geometry: Any) -> nn.Module:
    """A convolution of the spec's dimension; `geometry` as torch takes it."""
    kind: type[nn.Conv1d] | type[nn.Conv2d] = nn.Conv1d if spec.type == "conv1d" else nn.Conv2d
    return kind(in_channels, out_channels, **geometry)


def seed_of(kernel_id: str) -> int:
    """The seed a kernel id stands for, so a recompiled kernel is the same kernel."""
    return zlib.crc32(kernel_id.encode())
