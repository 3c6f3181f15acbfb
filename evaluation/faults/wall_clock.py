"""The wall clock of a Python process, set from outside: it is ahead by the seconds in a file of its working directory.

`prepare` writes a `sitecustomize.py`, which Python runs in every process that has its folder on PYTHONPATH, before any
import: from then on `time.time` and `time.time_ns` read the file. The monotonic clock is what it is, as on a machine
whose clock is set. C libraries, such as librdkafka, see the machine's clock.
"""

import time
from collections.abc import Mapping
from pathlib import Path

FILE = "clock-ahead-s"
"""In the working directory of a process: how many seconds its clock is ahead; absent or unreadable: none."""
READ_EVERY_S = 0.05
HOOK = "from tamiyo.evaluation.faults.wall_clock import follow\n\nfollow()\n"


def prepare(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of processes whose clocks follow their files; `folder` receives the hook."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(HOOK)
    path = environment.get("PYTHONPATH")
    return {"PYTHONPATH": f"{folder.absolute()}:{path}" if path else str(folder.absolute())}


def set_ahead(working_directory: Path, seconds: float) -> None:
    """Set the clock of the process that works in a directory ahead, or back where `seconds` is negative; 0: right."""
    written = working_directory / f"{FILE}.new"
    written.write_text(f"{seconds}")
    written.replace(working_directory / FILE)


def follow(path: Path | None = None) -> None:
    """Let this process's wall clock follow a file, by default that of its working directory."""
    file = path or Path(FILE).absolute()
    wall_ns, monotonic = time.time_ns, time.monotonic
    ahead_ns, read_at = 0, float("-inf")

    def time_ns() -> int:
        nonlocal ahead_ns, read_at
        now = monotonic()
        if now - read_at >= READ_EVERY_S:
            read_at = now
            try:
                ahead_ns = round(1e9 * float(file.read_text()))
            except (OSError, ValueError):
                ahead_ns = 0
        return wall_ns() + ahead_ns

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9
