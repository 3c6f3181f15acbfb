"""Kernels in memory: least recently used out first, over the kernel store."""

from __future__ import annotations

from dataclasses import dataclass

from tamiyo.host.blueprints_base import Kernel
from tamiyo.host.spec import LayerSpec
from tamiyo.host.store import KernelMetadata, KernelStore


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counts since the start; `hit_rate` is 1.0 before the first look-up (nothing was missed)."""

    hits: int
    misses: int
    evictions: int
    entries: int
    size_bytes: int

    @property
    def hit_rate(self) -> float:
        raise NotImplementedError


def check_compatible(metadata: KernelMetadata, layer: LayerSpec) -> None:
    """Raises KernelIncompatible with the fact that differs, where a kernel cannot run at a layer."""


class KernelCache:
    """Threads may share it (a receiver prefetches while training loads)."""

    def __init__(self, store: KernelStore, *, capacity: int = 64, max_bytes: int = 256 * 1024 * 1024) -> None: ...

    def get(
        self, kernel_id: str, checksum: str, *, layer: LayerSpec | None = None
    ) -> tuple[Kernel, KernelMetadata]:
        """A kernel of one's own (a copy), validated and, where `layer` is given, fitting it. Raises as the store does."""
        raise NotImplementedError

    def prefetch(self, kernel_id: str, checksum: str) -> None:
        """Bring a kernel in ahead of its use; counts as a miss only where it was not there."""

    def invalidate(self, kernel_id: str) -> None: ...

    def stats(self) -> CacheStats:
        raise NotImplementedError
