"""What a layer's output shows in a forward pass: how much it varies, what of it is dead, how alike units are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Bounds, so that a layer's statistics cost about the same at any layer.
MAX_UNITS = 64
MAX_POSITIONS = 1024  # the variance of so many values is within 5 % of the true one
MAX_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Activation:
    """One layer in the forward pass: latency, and the output's variance, share of dead units, mean |correlation|."""

    latency_ms: float
    variance: float
    dead_ratio: float
    correlation: float


def is_transformed(output: Tensor) -> bool:
    """Return whether an output belongs to a transform of torch.func, such as vmap or grad: it has no values to read."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(output))


def unit_values(output: Tensor, channels_last: bool) -> Tensor | npt.NDArray[np.float32]:
    """Return a copy of a layer's output [batch, ...] as [units, samples, positions], thinned evenly if it is large.

    A numpy array if the output is in main memory, because small operations are several times cheaper on it.
    """
    values = output.detach()
    local = values.device.type == "cpu" and values.dtype is torch.float32
    found: Any = values.numpy() if local else values
    if channels_last:
        found = found.reshape(-1, found.shape[-1], 1)
    elif found.ndim != 3:
        found = found.reshape(*found.shape[:2], -1)
    batch, units, positions = found.shape
    # Thin first, so that a large output is never copied whole.
    samples = MAX_POSITIONS if positions == 1 else MAX_SAMPLES
    every = math.ceil(batch / samples)
    along = math.ceil(positions * math.ceil(batch / every) / MAX_POSITIONS)
    part = found[::every, :: math.ceil(units / MAX_UNITS), ::along].swapaxes(0, 1)
    # A copy, because the next module may change the output in place.
    copied: Tensor | npt.NDArray[np.float32] = part.copy() if local else part.clone()
    return copied


def activation_stats(units: npt.NDArray[np.float32]) -> tuple[float, float, float]:
    """Return variance, dead ratio and mean absolute correlation of a layer's output.

    Args:
        units: Values, [units, positions].

    Returns:
        The population variance of all values; the share of units that are positive nowhere, 0..1; the mean
        |correlation| over all pairs of units that vary, 0..1, 0 if fewer than two do.
    """
    # Few operations: this runs for every layer, and the overhead of a call exceeds its arithmetic.
    count, positions = units.shape
    means = np.add.reduce(units, axis=1) / positions
    centred = units - means[:, None]
    gram = centred @ centred.T
    squares = gram.diagonal()
    spread = means - np.add.reduce(means) / count
    variance = (float(np.add.reduce(squares)) / positions + float(spread @ spread)) / count
    dead = float(np.add.reduce(np.maximum.reduce(units, axis=1) <= 0)) / count
    # Rounding leaves a constant unit with a small variance.
    varies = squares > positions * 1e-12 * (1e-12 + means * means)
    vary = int(np.add.reduce(varies))
    if vary < 2:
        return variance, dead, 0.0
    scale = varies / np.sqrt(np.where(varies, squares, 1.0))
    total = float(np.add.reduce(np.abs(gram * scale[:, None] * scale), axis=None)) - vary
    return variance, dead, min(max(total / (vary * (vary - 1)), 0.0), 1.0)


@dataclass(slots=True)
class Output:
    """A layer's output in the sampled step, thinned."""

    latency_ms: float
    units: Tensor | npt.NDArray[np.float32]


def activation(output: Output) -> Activation | None:
    """Return what an output shows; None if it is not finite."""
    units = output.units if isinstance(output.units, np.ndarray) else output.units.float().cpu().numpy()
    stats = activation_stats(units.reshape(len(units), -1))
    return Activation(output.latency_ms, *stats) if all(map(math.isfinite, stats)) else None
