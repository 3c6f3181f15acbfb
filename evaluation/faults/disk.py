"""Disks that are full: a folder of the store takes not a byte more, until it does again.

Where this process may mount, each folder is a small file system of its own (tmpfs), which shrinks to what it holds:
the writer gets the kernel's own "no space left on device". Where it may not, the processes that write there get a
limit on the size of a file, and "file too large" after some bytes: as sudden, and in the middle of a file too.
"""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOMY = "2g"
SPARE_BYTES = 16_384  # what a full folder still takes: a file is begun, and cannot be finished
LIMIT_BYTES = 65_536  # below a kernel's size, above that of what processes log in a minute


class Disk:
    """One folder whose room is ours to give. A context manager: what was mounted is unmounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.mounted = _mount(folder, f"size={ROOMY}")

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *_: object) -> None:
        if self.mounted:
            # Lazily: a process that was killed a moment ago may still be counted as its user.
            subprocess.run(["umount", "-l", str(self.folder)], check=False, capture_output=True)  # noqa: S603, S607

    @property
    def means(self) -> str:
        """Say how it is made full."""
        return "tmpfs without room" if self.mounted else "RLIMIT_FSIZE of the processes"

    @contextlib.contextmanager
    def full(self, processes: Iterable[int]) -> Iterator[None]:
        """Give no room inside the block; `processes` are those that write there."""
        if self.mounted:
            used = shutil.disk_usage(self.folder).used + SPARE_BYTES
            _mount(self.folder, f"remount,size={used}")
            try:
                yield
            finally:
                _mount(self.folder, f"remount,size={ROOMY}")
            return
        limited = [pid for pid in processes if _limit(pid, LIMIT_BYTES)]
        try:
            yield
        finally:
            for pid in limited:
                _limit(pid, resource.RLIM_INFINITY)


def _mount(folder: Path, options: str) -> bool:
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0  # noqa: S603


def _limit(pid: int, size: int) -> bool:
    try:
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
    except (OSError, ValueError):
        return False  # it has ended meanwhile
    return True
