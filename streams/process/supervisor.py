"""Restarts `tamiyo worker` or `tamiyo learner` after a bug, a stall or a crash.

The work is done in a child process with the same command line: after a bug, a hung event loop or a lack of memory, a
process is in no state to restart itself. The child ends with the supervisor, however that ends.
"""

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from tamiyo.streams.process.children import die_with_parent
from tamiyo.streams.process.exit_codes import EXIT_CONFIG, EXIT_FAILURE, EXIT_SOFTWARE, EXIT_TEMPFAIL
from tamiyo.streams.settings import SupervisorSettings

log = structlog.get_logger(__name__)

EXIT_USAGE = 2  # click's
REASONS: Mapping[int, str] = {
    EXIT_FAILURE: "Kafka, its topics or the store could not be used",
    EXIT_SOFTWARE: "a bug",
    EXIT_TEMPFAIL: "Kafka or the store failed, or the process stalled",
    EXIT_CONFIG: "Kafka refuses what worked before: correct a permission, a topic or a setting",
}


def supervise(arguments: Sequence[str], settings: SupervisorSettings) -> int:
    """Run `tamiyo ARGUMENTS`, with restarts, and return the last exit status."""
    return Supervisor([sys.executable, "-m", "tamiyo.streams.cli", *arguments, "--no-supervise"], settings).run()


class Supervisor:
    """Keeps one command running. Must run in the main thread, whose signals it handles."""

    def __init__(
        self, command: Sequence[str], settings: SupervisorSettings, *, uniform: Callable[[], float] = random.random
    ) -> None:
        self._command = list(command)
        self._settings = settings
        self._uniform = uniform
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()

    def run(self) -> int:
        """Run the command, restart it where that may help, and return its last exit status.

        It is not restarted after a stop, status 0, a wrong command line, or status 1 at its first start: then a setting
        has to be corrected. After a restart, status 1 means an outage, since the settings have worked before.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGALRM, self._kill)
        restarts = failures = 0
        while True:
            started = time.monotonic()
            status = self._run_once()
            if self._stopped.is_set() or status in (0, EXIT_USAGE) or (status == EXIT_FAILURE and not restarts):
                return status if status >= 0 else 128 - status
            ran_s = time.monotonic() - started
            restarts += 1
            failures = 1 if ran_s >= self._settings.reset_after_s else failures + 1
            delay = self.delay(failures)
            log.warning(
                "process exited, restarting",
                status=status, reason=_reason(status), ran_s=round(ran_s, 1), restart=restarts, in_s=round(delay, 1),
            )  # fmt: skip
            if self._stopped.wait(delay):
                return 0

    def delay(self, failures: int) -> float:
        """Return the seconds to wait after `failures` failures in a row.

        The wait doubles each time. Half of it is random, so that processes that failed together restart apart.
        """
        first, last = self._settings.first_backoff_s, self._settings.last_backoff_s
        return min(last, first * 2.0 ** min(failures - 1, 60)) * (0.5 + 0.5 * self._uniform())

    def _run_once(self) -> int:
        self._child = subprocess.Popen(self._command, preexec_fn=die_with_parent())  # noqa: S603 (this command line, no shell)
        if self._stopped.is_set():
            self._child.send_signal(signal.SIGTERM)
        return self._child.wait()

    def _stop(self, *_: Any) -> None:
        self._stopped.set()
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            signal.setitimer(signal.ITIMER_REAL, self._settings.stop_timeout_s)

    def _kill(self, *_: Any) -> None:
        if self._child is not None and self._child.poll() is None:
            log.error("process did not stop in time, killing it", seconds=self._settings.stop_timeout_s)
            self._child.kill()


def _reason(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return REASONS.get(status, "unknown")
