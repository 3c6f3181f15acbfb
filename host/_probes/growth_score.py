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
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tamiyo.host.blueprints._layer_spec import LayerSpec
from tamiyo.schemas.errors import KernelError

# Bounds, so that a score costs about the same at any layer.
MAX_ROWS = 1024
MAX_FEATURES = 64
MAX_INPUTS = 256

# Relative to the mean square of the regressors: small against any signal, large against float32's rounding.
_RIDGE = 1e-4


def growth_score(inputs: Tensor, gradient: Tensor, features: Tensor, ridge: float = _RIDGE) -> Tensor:
    """Return the growth score, a scalar >= 0; not finite if a value is not, or is too large to be squared.

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
    """Solve (gram + eps I) x = right; NaN if the factorisation fails, as it does if a value is not finite.

    Args:
        gram: [n, n]; it is overwritten.
        right: [n, columns].
        eps: A scalar.
    """
    gram.diagonal().add_(eps + torch.finfo(gram.dtype).tiny)
    factor, failed = torch.linalg.cholesky_ex(gram)
    return torch.cholesky_solve(right, factor).masked_fill_(failed != 0, torch.nan)


class GrowthProbe:
    """Scores one layer from its input and the gradient at its output, with fixed random features.

    The rows are exactly what the layer's parallel expansion would read. Of attention that is the query, so the score
    counts what a nonlinear function of the query explains of the gradient, beyond a linear one.
    """

    def __init__(self, spec: LayerSpec) -> None:
        """Prepare for a layer; the first score draws the features, which depend on its name and geometry only."""
        self.spec = spec
        self._drawn: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._chosen: tuple[tuple[object, ...], tuple[Tensor, ...]] = ((), ())
        """Positions of the rows, and what they depend on; those of the latest score."""

    def score(self, layer_input: Tensor, gradient: Tensor) -> Tensor:
        """Return the score of a step.

        Args:
            layer_input: Input of the layer, [batch, ...], or without a batch; of any floating dtype.
            gradient: Gradient of the loss at its output, [batch, ...] alike.

        Returns:
            A float32 scalar on the input's device. It is not finite, which means not measured, if the batch is empty, a
            value or its square is not finite in float32, or no kernel can grow at the layer.

        Raises:
            KernelError: The gradient is not one of this layer's output for this input.
        """
        with torch.no_grad(), torch.autocast(layer_input.device.type, enabled=False):
            if not self.spec.growable or not (layer_input.numel() and gradient.numel()):
                return layer_input.new_full((), torch.nan, dtype=torch.float32)
            part, share = self._part(layer_input)
            inputs = self._samples(layer_input)[part].float()
            gradient = self._samples(gradient)[part].float()
            stride = math.ceil(gradient.numel() / self.spec.out_features / MAX_ROWS)
            x, d = self.rows(inputs, gradient, every=stride)
            weight, bias, directions = self._features(x.device)
            features = F.relu(torch.addmm(bias, x, weight))
            regressors = x if directions is None else x @ directions
            # The score is a sum over rows: scale it from the rows used to the whole batch.
            return growth_score(regressors, d, features) * (share * stride)

    def rows(self, layer_input: Tensor, gradient: Tensor, *, every: int = 1) -> tuple[Tensor, Tensor]:
        """Return inputs [rows, fan_in] and gradient [rows, outputs], one row per position of the output.

        Args:
            layer_input: Input of the layer, [batch, ...].
            gradient: Gradient at its output, [batch, ...].
            every: Number of positions from one row to the next.

        Raises:
            KernelError: The gradient does not have the positions of the output for this input.
        """
        spec = self.spec
        if not spec.spatial_dims:
            x, d = layer_input.reshape(-1, spec.in_features), gradient.reshape(-1, spec.out_features)
            if len(x) != len(d):
                raise self._mismatch(layer_input, gradient)
            return x[::every], d[::every]
        windows = self._windows(layer_input, gradient)
        outputs = gradient.movedim(1, -1)
        if windows.shape[: spec.spatial_dims + 1] != outputs.shape[:-1] or outputs.shape[-1] != spec.out_features:
            raise self._mismatch(layer_input, gradient)
        # Indexing copies the chosen rows only; all of them could be hundreds of times the input.
        key = (outputs.shape[:-1], every, gradient.device)
        if self._chosen[0] != key:
            chosen = torch.arange(0, outputs.shape[:-1].numel(), every, device=gradient.device)
            self._chosen = key, torch.unravel_index(chosen, outputs.shape[:-1])
        positions = self._chosen[1]
        return windows[positions].flatten(1), outputs[positions]

    def _windows(self, layer_input: Tensor, gradient: Tensor) -> Tensor:
        """Return the inputs that each output is computed from, [batch, *output space, channels, *kernel], as a view."""
        spec = self.spec
        stride = spec.stride
        if spec.transposed:
            # The same as a convolution, with stride 1, of the input with zeros between its values.
            padded, stride = self._spread(layer_input, gradient), (1,) * spec.spatial_dims
        else:
            padded = self._padded(layer_input)
        windows = padded
        for dim, (size, step, dilation) in enumerate(zip(spec.kernel_size, stride, spec.dilation, strict=True), 2):
            windows = windows.unfold(dim, dilation * (size - 1) + 1, step)[..., ::dilation]
        return windows.movedim(1, spec.spatial_dims + 1)

    def _spread(self, layer_input: Tensor, gradient: Tensor) -> Tensor:
        """Return a transposed convolution's input, spread by the stride and padded for its kernel."""
        spec = self.spec
        assert not isinstance(spec.padding, str)
        taken, returned = layer_input.shape[2:], gradient.shape[2:]
        extra = spec.extra_outputs(taken, returned)
        if not all(0 <= n < max(s, d) for n, s, d in zip(extra, spec.stride, spec.dilation, strict=True)):
            raise self._mismatch(layer_input, gradient)
        spread = layer_input.new_zeros(
            *layer_input.shape[:2], *((n - 1) * s + 1 for n, s in zip(taken, spec.stride, strict=True))
        )
        every: list[slice[Any, Any, Any]] = [slice(None, None, s) for s in spec.stride]
        spread[:, :, *every] = layer_input
        before = [d * (k - 1) - p for d, k, p in zip(spec.dilation, spec.kernel_size, spec.padding, strict=True)]
        after = [n + m for n, m in zip(before, extra, strict=True)]
        return F.pad(spread, _per_dimension(before, after))

    def _padded(self, layer_input: Tensor) -> Tensor:
        """Return a convolution's input with its padding."""
        spec = self.spec
        if isinstance(spec.padding, str):
            reach = [
                d * (k - 1) if spec.padding == "same" else 0
                for d, k in zip(spec.dilation, spec.kernel_size, strict=True)
            ]
            before, after = [r // 2 for r in reach], [r - r // 2 for r in reach]
        else:
            before = after = list(spec.padding)
        mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
        return F.pad(layer_input, _per_dimension(before, after), mode=mode)

    def _features(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return weight [fan_in, width] and bias of the random features, and the directions to regress out along."""
        if self._drawn is None:
            spec = self.spec
            fan_in = spec.in_features * math.prod(spec.kernel_size)
            generator = torch.Generator().manual_seed(zlib.crc32(spec.layer_id.encode()))
            bound = 1 / math.sqrt(fan_in)  # torch's own initialisation of Linear and Conv
            width = min(MAX_FEATURES, 8 * spec.out_features)
            # The training process may have another default dtype and device.
            options: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
            weight = (torch.rand(fan_in, width, **options) * 2 - 1) * bound
            bias = (torch.rand(width, **options) * 2 - 1) * bound
            # A wide input is regressed out along random directions: exact up to MAX_INPUTS, affordable above.
            directions = torch.randn(fan_in, MAX_INPUTS, **options) if fan_in > MAX_INPUTS else None
            self._drawn = weight, bias, directions
        weight, bias, directions = self._drawn
        if weight.device != device:
            directions = None if directions is None else directions.to(device)
            self._drawn = weight, bias, directions = weight.to(device), bias.to(device), directions
        return weight, bias, directions

    def _samples(self, value: Tensor) -> Tensor:
        """Return an input or gradient as a batch of samples; of attention each position is one, in either layout."""
        batched = self.spec.batched(value)
        return batched.flatten(0, 1) if self.spec.type == "attention" else batched

    def _part(self, layer_input: Tensor) -> tuple[slice, float]:
        """Return which samples to use, and the batch's size as a multiple of their number."""
        batch = len(self._samples(layer_input))
        if self.spec.type == "attention":
            every = math.ceil(batch / MAX_ROWS)
            return slice(None, None, every), batch / math.ceil(batch / every)
        per_sample = max(1, self.spec.positions)
        samples = min(batch, max(8, math.ceil(MAX_ROWS / per_sample)))
        return slice(samples), batch / samples

    def _mismatch(self, layer_input: Tensor, gradient: Tensor) -> KernelError:
        return KernelError(
            f"layer {self.spec.layer_id!r}: a gradient of shape {tuple(gradient.shape)} is not that of a "
            f"{self.spec.type}'s output for an input of shape {tuple(layer_input.shape)}"
        )


def _per_dimension(before: list[int], after: list[int]) -> list[int]:
    """Return paddings as F.pad takes them: the last dimension first."""
    return [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
