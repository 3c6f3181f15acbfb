"""Kernels at rest: one safetensors file a kernel under an fsspec URL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tamiyo.host.blueprints_base import Kernel
from tamiyo.host.spec import LayerSpec

MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class KernelMetadata:
    """What a stored kernel says of itself, beside its tensors."""

    kernel_id: str
    blueprint: str
    version: int
    spec: LayerSpec
    parameters: int
    flops: int
    shapes: dict[str, tuple[int, ...]]

    def to_dict(self) -> dict[str, Any]:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class StoredKernel:
    """A receipt: what to ask the store for, and what must come back."""

    kernel_id: str
    checksum: str
    size_bytes: int
    parameters: int
    metadata: KernelMetadata


class KernelStore:
    """`put` and `get` kernels under an fsspec URL (a folder, memory://, s3://...). Threads may share it."""

    def __init__(self, url: str, *, max_bytes: int = MAX_BYTES) -> None: ...

    def put(self, kernel_id: str, kernel: Kernel, spec: LayerSpec, blueprint: str) -> StoredKernel:
        """Store a kernel whole or not at all; the same kernel gives the same bytes. Raises KernelError."""
        raise NotImplementedError

    def get(self, kernel_id: str, checksum: str) -> tuple[Kernel, KernelMetadata]:
        """The kernel, checked against `checksum` (SHA-256, hex) and its metadata.

        Raises KernelError (absent, too large, bad id), KernelCorrupt (checksum, format), KernelIncompatible
        (another blueprint version).
        """
        raise NotImplementedError

    def exists(self, kernel_id: str) -> bool:
        raise NotImplementedError

    def delete(self, kernel_id: str) -> None:
        """Remove a kernel; one that is not there is no error."""
