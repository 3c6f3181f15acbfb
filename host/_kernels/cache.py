"""A least-recently-used cache of kernels in front of the kernel store."""

from __future__ import annotations

import copy
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

from tamiyo.host._kernels.store import KernelMetadata, KernelStore, kernel_file
from tamiyo.host.blueprints import Kernel, blueprint
from tamiyo.host.blueprints._layer_spec import LayerSpec
from tamiyo.schemas.adaptation import CompiledKernel, KernelStatus
from tamiyo.schemas.errors import KernelError, KernelIncompatible

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counts since the start, and the current contents."""

    hits: int
    misses: int
    evictions: int
    entries: int
    size_bytes: int

    @property
    def hit_rate(self) -> float:
        """Hits divided by look-ups; 1.0 before the first one."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else 1.0


@dataclass(frozen=True, slots=True)
class _Entry:
    checksum: str
    kernel: Kernel
    metadata: KernelMetadata
    size_bytes: int


def check_compatible(metadata: KernelMetadata, layer: LayerSpec) -> None:
    """Return if a kernel can run at a layer. Raises KernelIncompatible, naming the difference, if not."""
    recipe = blueprint(metadata.blueprint)
    difference = metadata.spec.fits(layer)
    if not difference and metadata.version != recipe.version:
        difference = f"its version is {metadata.version}, the blueprint's is {recipe.version}"
    if not difference and not recipe.supports(layer):
        difference = f"{recipe.name} does not support a {layer.type}"
    if difference:
        raise KernelIncompatible(
            f"kernel {metadata.kernel_id} ({metadata.blueprint}) does not fit layer {layer.layer_id!r}: {difference}"
        )


class KernelCache:
    """Thread-safe: a receiver prefetches while training loads; the store is read outside the lock."""

    def __init__(self, store: KernelStore, *, capacity: int = 64, max_bytes: int = 256 * 1024 * 1024) -> None:
        """Start empty.

        Args:
            store: Where kernels are read from.
            capacity: Largest number of kernels kept, at least 1.
            max_bytes: Largest size of all kernels together, bytes; the newest one is always kept.
        """
        if capacity < 1:
            raise KernelError(f"the capacity of a kernel cache must be at least 1, got {capacity}")
        self.store = store
        self.capacity = capacity
        self.max_bytes = max_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._hits = self._misses = self._evictions = self._bytes = 0

    def get(self, kernel_id: str, checksum: str, *, layer: LayerSpec | None = None) -> tuple[Kernel, KernelMetadata]:
        """Return a copy of a kernel, and its metadata.

        Args:
            kernel_id: Name of the kernel in the store.
            checksum: Expected SHA-256, hex; a cached kernel with another checksum is read again.
            layer: If given, the kernel must be compatible with it.

        Raises:
            KernelError: As `KernelStore.get`.
            KernelIncompatible: The kernel does not fit `layer`.
        """
        entry = self._lookup(kernel_id, checksum, count_hit=True)
        if layer is not None:
            check_compatible(entry.metadata, layer)
        return copy.deepcopy(entry.kernel), entry.metadata

    def prefetch(self, kernel_id: str, checksum: str) -> None:
        """Load a kernel before it is needed. Counts a miss if it was absent, and nothing if it was cached."""
        self._lookup(kernel_id, checksum, count_hit=False)

    def fetch_ahead(self, compiled: CompiledKernel) -> None:
        """Prefetch the kernel of a record as soon as it arrives; a failure surfaces when the kernel is loaded."""
        if compiled.status is KernelStatus.COMPILED:
            try:
                self.prefetch(compiled.kernel_id, compiled.checksum)
            except KernelError as error:
                log.info("kernel %s could not be prefetched: %s", compiled.kernel_id, error)

    def file(self, kernel_id: str, checksum: str) -> bytes:
        """Return a kernel's file, as the store has it. Raises KernelError as `KernelStore.get`."""
        entry = self._lookup(kernel_id, checksum, count_hit=False)
        return kernel_file(entry.kernel, entry.metadata)

    def pristine(self, kernel_id: str) -> dict[str, Tensor]:
        """Return the parameters that a cached kernel was stored with. Raises KernelError if it is not cached."""
        with self._lock:
            entry = self._entries.get(kernel_id)
        if entry is None:
            raise KernelError(f"kernel {kernel_id} is not in the cache")
        return {name: value.detach().clone() for name, value in entry.kernel.state_dict().items()}

    def invalidate(self, kernel_id: str) -> None:
        """Remove a kernel, if it is cached."""
        with self._lock:
            self._remove(kernel_id)

    def stats(self) -> CacheStats:
        """Return the counts so far."""
        with self._lock:
            return CacheStats(self._hits, self._misses, self._evictions, len(self._entries), self._bytes)

    def _lookup(self, kernel_id: str, checksum: str, *, count_hit: bool) -> _Entry:
        with self._lock:
            entry = self._entries.get(kernel_id)
            if entry is not None and entry.checksum == checksum:
                self._entries.move_to_end(kernel_id)
                self._hits += count_hit
                return entry
            self._misses += 1
        kernel, metadata = self.store.get(kernel_id, checksum)
        size = sum(v.numel() * v.element_size() for v in kernel.state_dict().values())
        entry = _Entry(checksum, kernel, metadata, size)
        with self._lock:
            self._remove(kernel_id)
            self._entries[kernel_id] = entry
            self._bytes += size
            while len(self._entries) > 1 and (len(self._entries) > self.capacity or self._bytes > self.max_bytes):
                self._remove(next(iter(self._entries)))
                self._evictions += 1
        return entry

    def _remove(self, kernel_id: str) -> None:
        entry = self._entries.pop(kernel_id, None)
        if entry is not None:
            self._bytes -= entry.size_bytes
