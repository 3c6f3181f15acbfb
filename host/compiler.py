"""From a blueprint's name and a layer's spec to a checked kernel in the store."""

from __future__ import annotations

from tamiyo.host.spec import LayerSpec
from tamiyo.host.store import KernelStore, StoredKernel


def compile_kernel(
    spec: LayerSpec, blueprint_name: str, kernel_id: str, store: KernelStore, *, parameter_budget: int
) -> StoredKernel:
    """Build, check and store a kernel. The same arguments give the same bytes. Raises KernelError with the reason."""
    raise NotImplementedError
