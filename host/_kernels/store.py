"""The kernel store: one safetensors file per kernel under an fsspec URL, with its metadata as JSON in the header."""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from tamiyo.host.blueprints import Kernel, blueprint
from tamiyo.host.blueprints._layer_spec import LayerSpec
from tamiyo.schemas.display import without_secrets
from tamiyo.schemas.errors import KernelCorrupt, KernelError, KernelIncompatible
from tamiyo.schemas.files import write_atomically
from tamiyo.schemas.stores import open_store

MAX_BYTES = 64 * 1024 * 1024
"""Largest kernel file, bytes; a larger one is refused before any of it is read."""
FORMAT = 1

_KERNEL_ID = re.compile(r"[0-9a-f]{8,64}")
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
_HEADER_KEY = "tamiyo"


@dataclass(frozen=True, slots=True)
class KernelMetadata:
    """The metadata of a stored kernel."""

    kernel_id: str
    blueprint: str
    version: int
    spec: LayerSpec
    parameters: int
    flops: int
    shapes: dict[str, tuple[int, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Return the metadata as JSON values; `from_dict` reads them back."""
        return {
            "format": FORMAT,
            "kernel_id": self.kernel_id,
            "blueprint": self.blueprint,
            "version": self.version,
            "spec": self.spec.to_dict(),
            "parameters": self.parameters,
            "flops": self.flops,
            "shapes": {name: list(shape) for name, shape in sorted(self.shapes.items())},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read `to_dict`'s result. Raises KernelCorrupt for a bad field, KernelIncompatible for spec or format."""
        try:
            if data["format"] != FORMAT:
                raise KernelIncompatible(f"expected a kernel file of format {FORMAT}, got {data['format']!r}")
            return cls(
                kernel_id=str(data["kernel_id"]),
                blueprint=str(data["blueprint"]),
                version=int(data["version"]),
                spec=LayerSpec.from_dict(data["spec"]),
                parameters=int(data["parameters"]),
                flops=int(data["flops"]),
                shapes={str(k): tuple(int(n) for n in v) for k, v in data["shapes"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise KernelCorrupt(f"kernel metadata is malformed: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class StoredKernel:
    """The receipt of a stored kernel; `kernel_id` and `checksum` (SHA-256, hex) are what `KernelStore.get` takes."""

    kernel_id: str
    checksum: str
    size_bytes: int
    parameters: int
    metadata: KernelMetadata


class KernelStore:
    """Reads and writes kernels under an fsspec URL (a folder, memory://, s3://...). Thread-safe."""

    def __init__(self, url: str, *, max_bytes: int = MAX_BYTES) -> None:
        """Open the store.

        Args:
            url: fsspec URL.
            max_bytes: Largest kernel file, bytes.

        Raises:
            ConfigurationError: The URL's filesystem is unknown or not installed.
        """
        self.url = without_secrets(url)  # for messages only
        self.max_bytes = max_bytes
        self._fs, self._root = open_store(url)

    def put(self, kernel_id: str, kernel: Kernel, spec: LayerSpec, blueprint_name: str) -> StoredKernel:
        """Store a kernel atomically, replacing one of the same id; the same kernel gives the same bytes.

        Raises:
            KernelError: The id is malformed, the file would exceed `max_bytes`, or the store cannot be written.
        """
        recipe = blueprint(blueprint_name)
        metadata = KernelMetadata(
            kernel_id=kernel_id,
            blueprint=blueprint_name,
            version=recipe.version,
            spec=spec,
            parameters=kernel.parameter_count,
            flops=recipe.flops(spec),
            shapes={k: tuple(v.shape) for k, v in kernel.state_dict().items()},
        )
        data = kernel_file(kernel, metadata)
        self.write(kernel_id, data)
        checksum = hashlib.sha256(data).hexdigest()
        return StoredKernel(kernel_id, checksum, len(data), metadata.parameters, metadata)

    def write(self, kernel_id: str, data: bytes) -> None:
        """Store a kernel's file as it is, atomically. Raises KernelError as `put`."""
        path = self._path(kernel_id)
        if len(data) > self.max_bytes:
            raise KernelError(f"kernel {kernel_id} has {len(data)} bytes, the limit is {self.max_bytes}")
        try:
            self._write(path, data)
        except OSError as error:
            raise KernelError(f"kernel {kernel_id} cannot be written to {self.url}: {error}") from error

    def get(self, kernel_id: str, checksum: str) -> tuple[Kernel, KernelMetadata]:
        """Return a kernel and its metadata, both checked.

        Args:
            kernel_id: 8 to 64 hex digits.
            checksum: Expected SHA-256 of the file, 64 hex digits.

        Raises:
            KernelError: The kernel is absent or too large, an argument is malformed, or the store cannot be read.
            KernelCorrupt: The checksum, the format or the values are wrong.
            KernelIncompatible: The kernel is of another version of its blueprint.
        """
        path = self._path(kernel_id)
        if not _CHECKSUM.fullmatch(checksum):
            raise KernelError(f"kernel {kernel_id}: expected a SHA-256 in 64 hex digits, got {checksum[:80]!r}")
        data = self._read(kernel_id, path)
        found = hashlib.sha256(data).hexdigest()
        if found != checksum:
            raise KernelCorrupt(f"kernel {kernel_id} has checksum {found}, expected {checksum}")
        return _decode(kernel_id, data)

    def exists(self, kernel_id: str) -> bool:
        """Return whether a kernel of this id is stored."""
        return bool(self._fs.exists(self._path(kernel_id)))

    def delete(self, kernel_id: str) -> None:
        """Remove a kernel, if it is stored."""
        path = self._path(kernel_id)
        if self._fs.exists(path):
            self._fs.rm_file(path)

    def _path(self, kernel_id: str) -> str:
        # Ids arrive in messages: only hex digits may reach a path.
        if not isinstance(kernel_id, str) or not _KERNEL_ID.fullmatch(kernel_id):
            raise KernelError(f"a kernel id is 8 to 64 hex digits, got {str(kernel_id)[:80]!r}")
        return posixpath.join(self._root, f"{kernel_id}.safetensors")

    def _read(self, kernel_id: str, path: str) -> bytes:
        try:
            size = int(self._fs.size(path))
            if size > self.max_bytes:
                raise KernelError(f"kernel {kernel_id} has {size} bytes, the limit is {self.max_bytes}")
            return bytes(self._fs.cat_file(path, start=0, end=size))
        except FileNotFoundError as error:
            raise KernelError(f"kernel {kernel_id} is not in {self.url}") from error
        except OSError as error:
            raise KernelError(f"kernel {kernel_id} cannot be read from {self.url}: {error}") from error

    def _write(self, path: str, data: bytes) -> None:
        if not isinstance(self._fs, LocalFileSystem):
            self._fs.pipe_file(path, data)  # object stores write atomically
            return
        self._fs.makedirs(self._root, exist_ok=True)
        write_atomically(Path(path), data)


def kernel_file(kernel: Kernel, metadata: KernelMetadata) -> bytes:
    """Return the file that a kernel is stored as; the same kernel gives the same bytes."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in kernel.state_dict().items()}
    data: bytes = safetensors.save(tensors, {_HEADER_KEY: json.dumps(metadata.to_dict(), sort_keys=True)})
    return data


def _decode(kernel_id: str, data: bytes) -> tuple[Kernel, KernelMetadata]:
    try:
        tensors = safetensors.load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = KernelMetadata.from_dict(json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_HEADER_KEY]))
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise KernelCorrupt(f"kernel {kernel_id} is not a kernel file: {error}") from error
    if metadata.kernel_id != kernel_id:
        raise KernelCorrupt(f"kernel {kernel_id}: the file is of kernel {metadata.kernel_id!r}")
    return _assemble(metadata, tensors), metadata


def _assemble(metadata: KernelMetadata, tensors: dict[str, Tensor]) -> Kernel:
    """Build the blueprint's kernel and fill it with the tensors, after checking them against the metadata."""
    what, spec = f"kernel {metadata.kernel_id}", metadata.spec
    recipe = blueprint(metadata.blueprint)
    if metadata.version != recipe.version:
        raise KernelIncompatible(
            f"{what} is of {recipe.name} version {metadata.version}, expected {recipe.version}: compile it again"
        )
    if not recipe.supports(spec):
        raise KernelIncompatible(f"{what}: blueprint {recipe.name} does not support a {spec.type}")
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    if shapes != metadata.shapes:
        raise KernelCorrupt(f"{what} contains tensors {shapes}, its metadata lists {metadata.shapes}")
    # Before building, so that no spec can request more memory than the file has.
    count, expected = sum(math.prod(shape) for shape in shapes.values()), recipe.parameters(spec)
    if not count == metadata.parameters == expected:
        raise KernelCorrupt(
            f"{what} contains {count} parameters, its metadata lists {metadata.parameters}, its blueprint {expected}"
        )
    if any(t.dtype != spec.torch_dtype for t in tensors.values()):
        raise KernelCorrupt(f"{what} contains tensors that are not {spec.dtype}")
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise KernelCorrupt(f"{what} contains values that are not finite")
    kernel = recipe.build(spec, seed=0)
    try:
        kernel.load_state_dict(tensors)
    except RuntimeError as error:
        raise KernelCorrupt(f"{what} does not fill blueprint {recipe.name}: {error}") from error
    return kernel
