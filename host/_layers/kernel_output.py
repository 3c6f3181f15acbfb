"""What kernels add to a layer's output."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from tamiyo.host._layers.seed import Seed
from tamiyo.schemas.errors import KernelIncompatible


def checked_delta(seed: Seed, layer_input: Tensor, layer_output: Tensor, deferred: bool) -> Tensor:
    """Return a kernel's delta.

    Raises FloatingPointError if a value is not finite: one sum finds out, in 5 us. If that is `deferred`, the seed's
    guard sees to it.
    """
    assert seed.kernel is not None
    guard = seed.guard if deferred else None
    if guard is not None:
        layer_input, layer_output = guard.shielded(layer_input), guard.shielded(layer_output)
    delta: Tensor = seed.kernel(layer_input, layer_output)
    if delta.shape != layer_output.shape:
        raise KernelIncompatible(f"the delta has shape {tuple(delta.shape)}, the output {tuple(layer_output.shape)}")
    if guard is not None:
        delta = guard.masked(delta)
    elif not is_finite(delta):
        raise FloatingPointError(f"kernel {seed.kernel_id} returned values that are not finite")
    return delta.to(layer_output.dtype)


def traced_output(live: Iterable[Seed], layer_input: Tensor, layer_output: Tensor) -> Tensor:
    """Return the output plus the deltas of the live kernels, in a form that a compiler can trace."""
    grown = layer_output
    for seed in live:
        assert seed.kernel is not None
        assert seed.guard is not None
        grown = grown + seed.guard.traced(seed.kernel(layer_input, layer_output)).to(layer_output.dtype)
    return grown


def is_finite(values: Tensor) -> bool:
    """Return whether the sum is finite: almost always the same as every value, and much cheaper.

    A value that cannot be read, as inside torch.func.vmap, counts as finite.
    """
    total = values.detach().sum(dtype=torch.float64 if values.dtype is torch.float64 else torch.float32)
    try:
        return math.isfinite(total.numpy() if total.device.type == "cpu" else total.item())
    except RuntimeError:
        return True
