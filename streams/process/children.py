"""Child processes of a demo: started with a log file each, watched, and stopped however the demo ends."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tamiyo.schemas.errors import TamiyoError

GRACE_S = 10.0  # what `tamiyo worker` promises for a graceful stop
LAST_WORDS = 15  # lines of a log that usually hold the reason
PR_SET_PDEATHSIG = 1


def tie() -> Callable[[], None]:
    """Return what a child calls before it executes, so that Linux kills it when this thread has ended, however.

    Elsewhere a parent that is killed leaves its children.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def tied() -> None:
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)

    return tied


class Children:
    """Processes of the `tamiyo` command line, by name."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self._logs = logs
        # They are watched here: to start one again would hide why it ended.
        self._environment = {**os.environ, "TAMIYO_SUPERVISOR_ENABLED": "false", **environment}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Start `tamiyo ARGUMENTS` under `name`, in `folder` where one is given; its log goes on where it was."""
        with (self._logs / f"{name}.log").open("ab") as log:
            # A session of its own: Ctrl-C reaches the demo only, which then stops its children in order.
            self._processes[name] = subprocess.Popen(  # noqa: S603 (our own command line, no shell)
                [sys.executable, "-m", "tamiyo.streams.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self._environment, **(environment or {})},
                cwd=folder,
                start_new_session=True,
                # A Ctrl-C between the fork and this assignment leaves a child that nobody knows.
                preexec_fn=tie() if threading.current_thread() is threading.main_thread() else None,
            )

    def names(self) -> list[str]:
        """Return the names of all that were started."""
        return list(self._processes)

    def pid(self, name: str) -> int:
        """Return the process id that `name` has, or had last."""
        return self._processes[name].pid

    def exit_code(self, name: str) -> int | None:
        """Return how `name` ended (minus a signal's number where one ended it); None while it runs."""
        return self._processes[name].poll()

    def signal(self, name: str, number: int) -> None:
        """Send a signal to `name`, if it still runs."""
        self._processes[name].send_signal(number)

    def wait(self, name: str, timeout_s: float | None = None) -> int:
        """Return how `name` ended, once it has; raises subprocess.TimeoutExpired after `timeout_s`."""
        return self._processes[name].wait(timeout_s)

    def running(self, name: str) -> bool:
        """Return whether `name` still runs; raises TamiyoError with its last words if it failed."""
        code = self._processes[name].poll()
        if code not in (None, 0):
            raise TamiyoError(f"{name} ended with status {code}:\n{self.last_words(name)}")
        return code is None

    def check(self, names: Sequence[str]) -> None:
        """Raise TamiyoError with the last words of the first of `names` that has ended, which none should."""
        for name in names:
            if not self.running(name):
                raise TamiyoError(f"{name} ended by itself:\n{self.last_words(name)}")

    def last_words(self, name: str) -> str:
        """Return the end of a child's log."""
        lines = (self._logs / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-LAST_WORDS:])

    def stop(self, names: Sequence[str] | None = None) -> None:
        """Stop `names` (all by default): SIGTERM together, SIGKILL for what is left after the grace."""
        chosen = [self._processes[name] for name in (self._processes if names is None else names)]
        for process in chosen:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for process in chosen:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
