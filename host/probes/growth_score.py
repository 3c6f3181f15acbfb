"""The growth score: what a kernel at a layer could do for the loss that the layer cannot do by itself.

With D the gradient of the loss at the layer's output, x the layer's (unfolded) input and h the features that a fresh
kernel would make of it, both one row a position: regress x out of h, since the layer reaches that part already; what
is left, h', gives G = D^T h', the gradient that a zero-initialised projection would receive, and

    score = trace(G (h'^T h' + eps)^-1 G^T),

the squared length of D's projection on h' (design, section 11). It grows with the loss and the batch: compare scores
within a network, not across.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor
from torch.nn import functional as F

from tamiyo.host.blueprints.layer_spec import LayerSpec

# Bounds of one score, so that it costs about the same at any layer.
MAX_ROWS = 1024
MAX_FEATURES = 64
MAX_INPUTS = 256

# Relative to the mean square of what is regressed: far below what matters, far above float32's noise.
_RIDGE = 1e-4


def growth_score(inputs: Tensor, gradient: Tensor, features: Tensor, ridge: float = _RIDGE) -> Tensor:
    """The score (a scalar) of `inputs` [rows, k], `gradient` [rows, outputs] and `features` [rows, h]."""
    # A layer has a bias, so a constant is among what it can do.
    x = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
    rest = features - x @ _solve(x.T @ x, x.T @ features, ridge * x.square().sum() / x.shape[1])
    g = rest.T @ gradient
    # eps is of the features as they came: what is left of those the layer has already is rounding, and must score 0.
    return (g * _solve(rest.T @ rest, g, ridge * features.square().sum() / features.shape[1])).sum()


def _solve(gram: Tensor, right: Tensor, eps: Tensor) -> Tensor:
    unit = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(gram + (eps + torch.finfo(gram.dtype).tiny) * unit)
    solved = torch.cholesky_solve(right, factor)
    return torch.where(failed == 0, solved, torch.zeros_like(solved))


class GrowthProbe:
    """Scores one layer from its input and the gradient at its output; its random features never change."""

    def __init__(self, spec: LayerSpec) -> None:
        self.spec = spec
        fan_in = spec.in_features * math.prod(spec.kernel_size)
        generator = torch.Generator().manual_seed(zlib.crc32(spec.layer_id.encode()))
        bound = 1 / math.sqrt(fan_in)  # torch's own initialisation of Linear and Conv
        width = min(MAX_FEATURES, 8 * spec.out_features)
        self._weight = (torch.rand(fan_in, width, generator=generator) * 2 - 1) * bound
        self._bias = (torch.rand(width, generator=generator) * 2 - 1) * bound
        # A wide input is regressed out along random directions only: exact below the bound, cheap above it.
        self._directions = torch.randn(fan_in, MAX_INPUTS, generator=generator) if fan_in > MAX_INPUTS else None

    def score(self, layer_input: Tensor, gradient: Tensor) -> Tensor:
        """The score, a scalar, of `layer_input` [batch, ...] and `gradient` [batch, ...] at the output."""
        with torch.no_grad():
            samples, share = self._samples(layer_input)
            x, d = self.rows(layer_input[:samples].float(), gradient[:samples].float())
            stride = math.ceil(len(x) / MAX_ROWS)
            x, d = x[::stride], d[::stride]
            if self._weight.device != x.device:
                self._weight, self._bias = self._weight.to(x.device), self._bias.to(x.device)
                self._directions = None if self._directions is None else self._directions.to(x.device)
            features = F.relu(torch.addmm(self._bias, x, self._weight))
            known = x if self._directions is None else x @ self._directions
            # A sum over rows: the part that was looked at stands for the whole batch.
            return growth_score(known, d, features) * (share * stride)

    def rows(self, layer_input: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """One row a position of the output: the inputs it was computed from, and its gradient."""
        spec = self.spec
        if spec.type == "linear":
            return layer_input.reshape(-1, spec.in_features), gradient.reshape(-1, spec.out_features)
        padded, padding = self._padded(layer_input)
        if spec.type == "conv1d":
            padded = padded.unsqueeze(2)
        flat = spec.type == "conv1d"
        patches = F.unfold(
            padded,
            (1, *spec.kernel_size) if flat else spec.kernel_size,
            dilation=(1, *spec.dilation) if flat else spec.dilation,
            padding=(0, *padding) if flat else padding,
            stride=(1, *spec.stride) if flat else spec.stride,
        )
        x = patches.transpose(1, 2).reshape(-1, patches.shape[1])
        return x, gradient.flatten(2).transpose(1, 2).reshape(-1, spec.out_features)

    def _padded(self, layer_input: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The input with whatever padding F.unfold cannot do itself, and the padding left for it."""
        spec = self.spec
        if isinstance(spec.padding, str):
            reach = [
                d * (k - 1) if spec.padding == "same" else 0
                for d, k in zip(spec.dilation, spec.kernel_size, strict=True)
            ]
            before, after = [r // 2 for r in reach], [r - r // 2 for r in reach]
        else:
            before = after = list(spec.padding)
        if spec.padding_mode == "zeros" and before == after:
            return layer_input, tuple(before)
        # F.pad wants the last dimension first.
        pad = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
        mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
        return F.pad(layer_input, pad, mode=mode), (0,) * len(before)

    def _samples(self, layer_input: Tensor) -> tuple[int, float]:
        batch = layer_input.shape[0]
        per_sample = max(1, self.spec.positions)
        samples = min(batch, max(8, math.ceil(MAX_ROWS / per_sample)))
        return samples, batch / samples
