"""The store of checkpoint files: a folder, or any fsspec file system."""

from __future__ import annotations

import re
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from tamiyo.schemas.display import without_secrets
from tamiyo.schemas.errors import PolicyError
from tamiyo.schemas.files import write_atomically
from tamiyo.schemas.stores import open_store

_FILE = re.compile(r"policy-(\d{6,12})\.safetensors")
MAX_BYTES = 1 << 30  # a thousand times a policy's size: a larger file is not one


class CheckpointStore:
    """Checkpoint files below an fsspec URL, named `policy-000012.safetensors`; other files are never opened.

    Example:
        >>> store = CheckpointStore("memory://doctest")
        >>> store.write(12, b"weights")
        'policy-000012.safetensors'
        >>> store.read("policy-000012.safetensors"), store.versions()
        (b'weights', [12])
    """

    def __init__(self, url: str) -> None:
        """Open the store; nothing is created before the first write.

        Args:
            url: A folder's path, or an fsspec URL such as s3://bucket/policies.

        Raises:
            ConfigurationError: The URL's file system is unknown, or needs an extra that is not installed.
        """
        self.url = without_secrets(url)  # for messages
        self._files, self._root = open_store(url)

    @staticmethod
    def file_name(version: int) -> str:
        """Return the file name of a version.

        Args:
            version: The policy's version, >= 0.
        """
        return f"policy-{version:06d}.safetensors"

    def write(self, version: int, data: bytes) -> str:
        """Store a version as a new file, completely or not at all.

        Args:
            version: The policy's version, >= 0.
            data: The file's bytes, from `save`.

        Returns:
            The file's name.

        Raises:
            FileExistsError: The version exists. If two learners continue the same policy, only one writes the next
                version. Local folders and object stores detect this; another remote file system may not.
        """
        name = self.file_name(version)
        self._files.makedirs(self._root, exist_ok=True)
        path = self._path(name)
        if not isinstance(self._files, LocalFileSystem):
            self._files.pipe_file(path, data, mode="create")
            return name
        write_atomically(Path(path), data, replace=False)
        return name

    def read(self, file: str) -> bytes:
        """Return a file's bytes.

        Args:
            file: A name as `write` returns it.

        Raises:
            PolicyError: The name is not a checkpoint's, there is no such file, or it is too large for a policy.
        """
        return self.read_range(file, 0, self.size(file))

    def size(self, file: str) -> int:
        """Return a file's size, bytes.

        Args:
            file: A name as `write` returns it.

        Raises:
            PolicyError: As for `read`.
        """
        if _FILE.fullmatch(file) is None:
            raise PolicyError(f"expected the name of a checkpoint such as {self.file_name(12)}, got {file!r}")
        try:
            size = int(self._files.size(self._path(file)) or 0)
        except FileNotFoundError as error:
            raise self._missing(file) from error
        if size > MAX_BYTES:
            raise PolicyError(f"{file} in {self.url} is larger than {MAX_BYTES} bytes: it is not a policy")
        return size

    def read_range(self, file: str, start: int, end: int) -> bytes:
        """Return part of a file.

        Args:
            file: A name as `write` returns it.
            start: First byte.
            end: Byte after the last; beyond the file's end it returns what there is.

        Raises:
            PolicyError: There is no such file.
        """
        try:
            content: bytes = self._files.cat_file(self._path(file), start=start, end=end)
        except FileNotFoundError as error:
            raise self._missing(file) from error
        return content

    def _missing(self, file: str) -> PolicyError:
        return PolicyError(f"there is no {file} in {self.url}: do learner and workers share this store?")

    def versions(self) -> list[int]:
        """Return the stored versions, ascending."""
        self._files.invalidate_cache(self._root)
        if not self._files.exists(self._root):
            return []
        names = [path.rsplit("/", 1)[-1] for path in self._files.ls(self._root, detail=False)]
        return sorted(int(match[1]) for name in names if (match := _FILE.fullmatch(name)))

    def delete(self, version: int) -> None:
        """Remove a version's file, if it exists.

        Args:
            version: The policy's version.
        """
        path = self._path(self.file_name(version))
        if self._files.exists(path):
            self._files.rm_file(path)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"
