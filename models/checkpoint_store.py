"""Where checkpoint files are kept."""

from __future__ import annotations

import re
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from tamiyo.schemas.display import without_secrets
from tamiyo.schemas.errors import PolicyError
from tamiyo.schemas.files import write_atomically
from tamiyo.schemas.stores import open_store

_FILE = re.compile(r"policy-(\d{6,12})\.safetensors")
MAX_BYTES = 1 << 30  # a thousand times the policy's size: what is larger is not a policy


class CheckpointStore:
    """Checkpoint files below an fsspec URL; names are `policy-000012.safetensors`, nothing else is opened."""

    def __init__(self, url: str) -> None:
        """Raise ConfigurationError for a URL whose file system is unknown or not installed."""
        self.url = without_secrets(url)  # for messages
        self._files, self._root = open_store(url)

    @staticmethod
    def file_name(version: int) -> str:
        """Return the name of a version's file."""
        return f"policy-{version:06d}.safetensors"

    def write(self, version: int, data: bytes) -> str:
        """Store `data` as a new file, whole or not at all; returns the file's name.

        Raises FileExistsError where there is one of that version: of two learners that go on from the same policy, one
        writes the next. How well a remote file system tells that is its own affair; object stores do.
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
        """Return a file's bytes. Raises PolicyError for a name that is no checkpoint's, or where there is none."""
        if _FILE.fullmatch(file) is None:
            raise PolicyError(f"{file!r} is not the name of a checkpoint, which is like {self.file_name(12)}")
        path = self._path(file)
        try:
            if (self._files.size(path) or 0) > MAX_BYTES:
                raise PolicyError(f"{file} in {self.url} is larger than {MAX_BYTES} bytes: it is no policy")
            content: bytes = self._files.cat_file(path)
        except FileNotFoundError as error:
            raise PolicyError(f"there is no {file} in {self.url}: do learner and workers share this store?") from error
        return content

    def versions(self) -> list[int]:
        """Return the versions there are, ascending."""
        self._files.invalidate_cache(self._root)
        if not self._files.exists(self._root):
            return []
        names = [path.rsplit("/", 1)[-1] for path in self._files.ls(self._root, detail=False)]
        return sorted(int(match[1]) for name in names if (match := _FILE.fullmatch(name)))

    def delete(self, version: int) -> None:
        """Remove a version's file, if it is there."""
        path = self._path(self.file_name(version))
        if self._files.exists(path):
            self._files.rm_file(path)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"
