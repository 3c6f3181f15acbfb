"""Full disks: a folder of the store takes no more bytes for a while.

If this process may mount, each folder is a small tmpfs that shrinks to its content, and writers get "no space left on
device" from the kernel. Otherwise the writing processes get a limit on the size of a file, and "file too large" in the
middle of one.
"""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

NORMAL_SIZE = "2g"
SPARE_BYTES = 16_384  # free in a full folder: a file can be begun and not finished
LIMIT_BYTES = 65_536  # less than a kernel, more than a process logs in a minute


class Disk:
    """One folder that can be made full. A context manager: it unmounts what it has mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.mounted = _mount(folder, f"size={NORMAL_SIZE}")

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *_: object) -> None:
        if self.mounted:
            # Lazily: a process killed a moment ago may still count as its user.
            subprocess.run(["umount", "-l", str(self.folder)], check=False, capture_output=True)  # noqa: S603, S607

    @property
    def means(self) -> str:
        """Describe how it is made full."""
        return "full tmpfs" if self.mounted else "RLIMIT_FSIZE of the processes"

    @contextlib.contextmanager
    def full(self, processes: Iterable[int]) -> Iterator[None]:
        """Make the folder full inside the block; `processes` are the ids of its writers."""
        if self.mounted:
            used = shutil.disk_usage(self.folder).used + SPARE_BYTES
            _mount(self.folder, f"remount,size={used}")
            try:
                yield
            finally:
                _mount(self.folder, f"remount,size={NORMAL_SIZE}")
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
        return False  # it has just ended
    return True
