"""Keep a kernel's delta that is not finite out of training without waiting for the device.

On a CPU the value of a sum is there at once, so an error is handled in the forward pass. On another device, reading it
would stop the host until the device has caught up, at every layer and step; and a compiler cannot trace past it. There
a guard replaces the delta by zero where it is not finite, keeps the gradients of that pass away from the kernel and
from the network, and counts. The count is read between steps, now and then.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class DeltaGuard:
    """The guard of one kernel: what it needs lies on the device of the layer."""

    def __init__(self, weight: Tensor) -> None:
        """Put the guard on the device of `weight`, with its dtype."""
        self.alpha = weight.new_zeros(())
        """Share of the delta in the output: a tensor, so that a compiled network is not compiled anew for each."""
        self.failures = torch.zeros((), device=weight.device)
        """Passes since the last reading in which the delta was not finite."""
        self._finite = torch.ones((), dtype=torch.bool, device=weight.device)
        self._value = 0.0
        self._hooks: list[RemovableHandle] = []

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.alpha.device

    def set_alpha(self, alpha: float) -> None:
        """Set the share without waiting for the device."""
        if alpha != self._value:
            self._value = alpha
            self.alpha.fill_(alpha)

    def take(self) -> Tensor:
        """Return the number of failures since the last call, on the device."""
        taken, self.failures = self.failures, torch.zeros_like(self.failures)
        return taken

    def watch(self, parameters: Iterable[nn.Parameter]) -> None:
        """Keep gradients of a failed pass out of the kernel's parameters."""
        self._hooks = [p.register_hook(self._gate) for p in parameters if p.requires_grad]  # type: ignore[no-untyped-call]

    def release(self) -> None:
        """Stop watching parameters."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def shielded(self, values: Tensor) -> Tensor:
        """Return the same values, for the kernel to read; a failed pass sends no gradient back through them."""
        if not values.requires_grad:
            return values
        alias = values.view_as(values)
        alias.register_hook(self._gate)  # type: ignore[no-untyped-call]
        return alias

    def masked(self, delta: Tensor) -> Tensor:
        """Return the delta, or zeros if a value is not finite, and count that."""
        self._finite = _finite(delta)
        self.failures += ~self._finite
        return torch.where(self._finite, delta, torch.zeros_like(delta))

    def traced(self, delta: Tensor) -> Tensor:
        """Return `alpha` times the delta, or zeros; nothing here keeps a compiler from tracing it."""
        finite = _finite(delta)
        self.failures.add_((~finite).to(self.failures.dtype))
        return self.alpha * torch.where(finite, delta, torch.zeros_like(delta))

    def _gate(self, gradient: Tensor) -> Tensor:
        return torch.where(self._finite, gradient, torch.zeros_like(gradient))


def _finite(values: Tensor) -> Tensor:
    """Return whether the sum is finite: almost always the same as every value, and much cheaper."""
    return torch.isfinite(values.detach().sum(dtype=torch.float64 if values.dtype is torch.float64 else torch.float32))
