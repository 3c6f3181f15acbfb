"""Child processes of the command line, each with a log file; they are stopped however the parent ends."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from tamiyo.schemas.errors import TamiyoError
from tamiyo.streams.process.exit_codes import EXIT_TEMPFAIL
from tamiyo.streams.process.stop_times import stop_wait_s

log = structlog.get_logger(__name__)

MOST_RESTARTS = 5  # of one child, after a temporary failure; the same failure again and again is not temporary
LOG_END = 15  # lines of a log that usually hold the reason
PR_SET_PDEATHSIG = 1


def die_with_parent() -> Callable[[], None]:
    """Return a `preexec_fn` for a child that Linux kills when the calling thread ends.

    On other systems a parent that is killed leaves its children.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def prepare() -> None:
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)

    return prepare


class Children:
    """Processes of the `tamiyo` command line, by name. A context manager that stops them."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self.stop_wait_s = stop_wait_s()
        """Seconds that a child may take to stop before it is killed."""
        self._logs = logs
        # A supervisor would hide why a child exited.
        self._environment = {**os.environ, "TAMIYO_SUPERVISOR_ENABLED": "false", **environment}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._starts: dict[str, Callable[[], None]] = {}
        self._restarts: Counter[str] = Counter()

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
        """Start a process.

        Args:
            name: its name here; a process that exited may be started again, and appends to the same log.
            arguments: of `tamiyo`.
            environment: added to that of all children.
            folder: its working directory; by default this process's.
        """
        self._starts[name] = lambda: self.start(name, arguments, environment=environment, folder=folder)
        with (self._logs / f"{name}.log").open("ab") as output:
            # A new session: Ctrl-C reaches only the parent, which then stops its children in order.
            self._processes[name] = subprocess.Popen(  # noqa: S603 (this command line, no shell)
                [sys.executable, "-m", "tamiyo.streams.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self._environment, **(environment or {})},
                cwd=folder,
                start_new_session=True,
                # A Ctrl-C between the fork and this assignment would leave a child behind.
                preexec_fn=die_with_parent() if threading.current_thread() is threading.main_thread() else None,
            )

    def names(self) -> list[str]:
        """Return the names of all processes that were started."""
        return list(self._processes)

    def pid(self, name: str) -> int:
        """Return the current or last process id of `name`."""
        return self._processes[name].pid

    def exit_code(self, name: str) -> int | None:
        """Return the exit status of `name`, minus the signal's number if one ended it; None while it runs."""
        return self._processes[name].poll()

    def signal(self, name: str, number: int) -> None:
        """Send a signal to `name` if it is running."""
        self._processes[name].send_signal(number)

    def wait(self, name: str, timeout_s: float | None = None) -> int:
        """Wait for `name` and return its exit status; raises subprocess.TimeoutExpired after `timeout_s`."""
        return self._processes[name].wait(timeout_s)

    def running(self, name: str) -> bool:
        """Return whether `name` is running; raises TamiyoError with the end of its log if it failed."""
        code = self._processes[name].poll()
        if code not in (None, 0):
            raise TamiyoError(f"{name} exited with status {code}:\n{self.log_end(name)}")
        return code is None

    def check(self, names: Sequence[str]) -> None:
        """Raise TamiyoError with the end of its log if one of `names` has exited.

        One that asks to be restarted, with status 75, is started again, as the platform does in production.
        """
        for name in names:
            if self._processes[name].poll() == EXIT_TEMPFAIL and self._restarts[name] < MOST_RESTARTS:
                self._restarts[name] += 1
                log.warning("restarting after a temporary failure", child=name, restarts=self._restarts[name])
                self._starts[name]()
            if not self.running(name):
                raise TamiyoError(f"{name} exited unexpectedly:\n{self.log_end(name)}")

    def log_end(self, name: str) -> str:
        """Return the end of a child's log."""
        lines = (self._logs / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_END:])

    def stop(self, names: Sequence[str] | None = None) -> None:
        """Stop `names` (all by default): SIGTERM to all at once, SIGKILL to those left after `stop_wait_s`."""
        chosen = [self._processes[name] for name in (self._processes if names is None else names)]
        for process in chosen:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self.stop_wait_s
        for process in chosen:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
