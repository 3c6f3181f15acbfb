"""Kernels that read the layer's output and refine it."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tamiyo.host.blueprints._base import Blueprint, Kernel, conv
from tamiyo.host.blueprints._layer_spec import LayerSpec


class BottleneckKernel(Kernel):
    """last(ReLU(first(layer output)))."""

    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.last = last

    def hidden(self, layer_input: Tensor, layer_output: Tensor) -> Tensor:
        return F.relu(self.first(layer_output))


class Bottleneck(Blueprint):
    """An MLP at each position of the output (1x1 convolutions): narrow at wide layers, with a floor at narrow ones."""

    name = "bottleneck"
    floor: ClassVar[int] = 16  # half of a layer 6 wide would be too few features to help

    def width(self, spec: LayerSpec) -> int:
        """Return the hidden features: half the layer's, at least 16, at most 512."""
        return max(self.floor, min(512, spec.out_features // 2))

    def supports(self, spec: LayerSpec) -> bool:
        return spec.growable

    def parameters(self, spec: LayerSpec) -> int:
        width = self.width(spec)
        return 2 * spec.out_features * width + width + spec.out_features

    def flops(self, spec: LayerSpec) -> int:
        return 2 * spec.out_features * self.width(spec) * spec.positions

    def make(self, spec: LayerSpec) -> Kernel:
        width, features = self.width(spec), spec.out_features
        if not spec.spatial_dims:
            return BottleneckKernel(nn.Linear(features, width), nn.Linear(width, features))
        first = conv(spec, features, width, kernel_size=1)
        return BottleneckKernel(first, conv(spec, width, features, kernel_size=1))


class DepthwiseSeparable(Blueprint):
    """A 3-wide convolution of each output channel by itself, ReLU, then a 1x1 mixing them."""

    name = "depthwise_separable"

    def supports(self, spec: LayerSpec) -> bool:
        return spec.spatial_dims > 0

    def parameters(self, spec: LayerSpec) -> int:
        return self._weights(spec) + 2 * spec.out_features

    def flops(self, spec: LayerSpec) -> int:
        return self._weights(spec) * spec.positions

    def _weights(self, spec: LayerSpec) -> int:
        window: int = 3**spec.spatial_dims
        return spec.out_features * (window + spec.out_features)

    def make(self, spec: LayerSpec) -> Kernel:
        features = spec.out_features
        first = conv(spec, features, features, kernel_size=3, padding=1, groups=features)
        return BottleneckKernel(first, conv(spec, features, features, kernel_size=1))


class SqueezeExciteKernel(Kernel):
    """layer output * tanh(last(ReLU(first(channel means)))): plus the layer's output, a gate in 0..2, first 1."""

    def __init__(self, features: int, width: int, spatial_dims: int) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.first = nn.Linear(features, width)
        self.last = nn.Linear(width, features)

    def hidden(self, layer_input: Tensor, layer_output: Tensor) -> Tensor:
        return F.relu(self.first(layer_output.mean(dim=tuple(range(-self.spatial_dims, 0)))))

    def forward(self, layer_input: Tensor, layer_output: Tensor) -> Tensor:
        gate = torch.tanh(self.last(self.hidden(layer_input, layer_output)))
        for _ in range(self.spatial_dims):
            gate = gate.unsqueeze(-1)
        return layer_output * gate


class SqueezeExcite(Blueprint):
    """A gate on each channel, computed from the channel means of the sample; few parameters. (Hu et al. 2018.)"""

    name = "squeeze_excite"

    def width(self, spec: LayerSpec) -> int:
        """Return the hidden features: a quarter of the channels, at least 4."""
        return max(4, spec.out_features // 4)

    def supports(self, spec: LayerSpec) -> bool:
        return spec.spatial_dims > 0

    def parameters(self, spec: LayerSpec) -> int:
        width = self.width(spec)
        return 2 * spec.out_features * width + width + spec.out_features

    def flops(self, spec: LayerSpec) -> int:
        # two small matrices, and one product per output value
        return 2 * spec.out_features * self.width(spec) + math.prod(spec.sample_output_shape)

    def make(self, spec: LayerSpec) -> Kernel:
        return SqueezeExciteKernel(spec.out_features, self.width(spec), spec.spatial_dims)
