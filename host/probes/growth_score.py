"""The growth score: how much a kernel at a layer could reduce the loss beyond what the layer can do itself.

Let D be the gradient of the loss at the layer's output, x the layer's (unfolded) input and h the features that a fresh
kernel would compute from it, each with one row per position. First x is regressed out of h, because the layer itself
can reach that part. The residual h' gives G = D^T h', the gradient that a zero-initialised projection of h would
receive, and

    score = trace(G (h'^T h' + eps)^-1 G^T),

the squared length of the projection of D onto the span of h'. Source: design, section 11, where it ranked the best
layer first at 11 of 12 measured states. The score grows with the loss and the batch, so compare scores within a network
only.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor
from torch.nn import functional as F

from tamiyo.host.blueprints.layer_spec import LayerSpec

# Bounds, so that a score costs about the same at any layer.
MAX_ROWS = 1024
MAX_FEATURES = 64
MAX_INPUTS = 256

# Relative to the mean square of the regressors: small against any signal, large against float32's rounding.
_RIDGE = 1e-4


def growth_score(inputs: Tensor, gradient: Tensor, features: Tensor, ridge: float = _RIDGE) -> Tensor:
    """Return the growth score, a scalar >= 0.

    Args:
        inputs: Inputs of the layer, [rows, k].
        gradient: Gradient of the loss at the layer's output, [rows, outputs].
        features: Features of a fresh kernel, [rows, h].
        ridge: Regularisation eps, relative to the mean square of what it is added to.
    """
    # A layer has a bias, so it can reach a constant too.
    x = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
    rest = features - x @ _solve(x.T @ x, x.T @ features, ridge * x.square().sum() / x.shape[1])
    g = rest.T @ gradient
    # eps is relative to the features before the regression: a residual that is only rounding must score 0.
    return (g * _solve(rest.T @ rest, g, ridge * features.square().sum() / features.shape[1])).sum()


def _solve(gram: Tensor, right: Tensor, eps: Tensor) -> Tensor:
    """Solve (gram + eps I) x = right; 0 if the factorisation fails."""
    unit = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(gram + (eps + torch.finfo(gram.dtype).tiny) * unit)
    solved = torch.cholesky_solve(right, factor)
    return torch.where(failed == 0, solved, torch.zeros_like(solved))


class GrowthProbe:
    """Scores one layer from its input and the gradient at its output, with fixed random features."""

    def __init__(self, spec: LayerSpec) -> None:
        """Draw the random features; they depend on the layer's name and geometry only."""
        self.spec = spec
        fan_in = spec.in_features * math.prod(spec.kernel_size)
        generator = torch.Generator().manual_seed(zlib.crc32(spec.layer_id.encode()))
        bound = 1 / math.sqrt(fan_in)  # torch's own initialisation of Linear and Conv
        width = min(MAX_FEATURES, 8 * spec.out_features)
        self._weight = (torch.rand(fan_in, width, generator=generator) * 2 - 1) * bound
        self._bias = (torch.rand(width, generator=generator) * 2 - 1) * bound
        # A wide input is regressed out along random directions: exact up to MAX_INPUTS, affordable above.
        self._directions = torch.randn(fan_in, MAX_INPUTS, generator=generator) if fan_in > MAX_INPUTS else None

    def score(self, layer_input: Tensor, gradient: Tensor) -> Tensor:
        """Return the score, a scalar, for `layer_input` [batch, ...] and the output's `gradient` [batch, ...]."""
        with torch.no_grad():
            samples, share = self._samples(layer_input)
            x, d = self.rows(layer_input[:samples].float(), gradient[:samples].float())
            stride = math.ceil(len(x) / MAX_ROWS)
            x, d = x[::stride], d[::stride]
            if self._weight.device != x.device:
                self._weight, self._bias = self._weight.to(x.device), self._bias.to(x.device)
                self._directions = None if self._directions is None else self._directions.to(x.device)
            features = F.relu(torch.addmm(self._bias, x, self._weight))
            regressors = x if self._directions is None else x @ self._directions
            # The score is a sum over rows: scale it from the rows used to the whole batch.
            return growth_score(regressors, d, features) * (share * stride)

    def rows(self, layer_input: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs [rows, fan_in] and gradient [rows, outputs], one row per position of the output."""
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
        """Return the input with the padding that F.unfold cannot apply, and the padding left to F.unfold."""
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
        # F.pad takes the last dimension first.
        pad = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
        mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
        return F.pad(layer_input, pad, mode=mode), (0,) * len(before)

    def _samples(self, layer_input: Tensor) -> tuple[int, float]:
        """Return how many samples to use, and the batch's size as a multiple of that."""
        batch = layer_input.shape[0]
        per_sample = max(1, self.spec.positions)
        samples = min(batch, max(8, math.ceil(MAX_ROWS / per_sample)))
        return samples, batch / samples
