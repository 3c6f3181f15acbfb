"""Starts `tamiyo worker` or `tamiyo learner` again when it ends by a bug, a stall or a crash.

The work is done in a child process of the same command line, since a bug, a hung event loop or a lack of memory leaves
nothing in the process that could be trusted to go on. The child ends with the supervisor, however that ends.
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

from tamiyo.streams.process.children import tie
from tamiyo.streams.process.exit_codes import EXIT_FAILURE, EXIT_SOFTWARE, EXIT_TEMPFAIL
from tamiyo.streams.settings import SupervisorSettings

log = structlog.get_logger(__name__)

EXIT_USAGE = 2  # click's
REASONS: Mapping[int, str] = {
    EXIT_FAILURE: "Kafka, its topics or the store could not be used",
    EXIT_SOFTWARE: "a bug",
    EXIT_TEMPFAIL: "Kafka or the store failed, or the process got stuck",
}


def supervise(arguments: Sequence[str], settings: SupervisorSettings) -> int:
    """Run `tamiyo ARGUMENTS` until it ends for good; return the exit status to end with."""
    return Supervisor([sys.executable, "-m", "tamiyo.streams.cli", *arguments, "--no-supervise"], settings).run()


class Supervisor:
    """Keeps one command running, from the main thread, whose signals it takes."""

    def __init__(
        self, command: Sequence[str], settings: SupervisorSettings, *, uniform: Callable[[], float] = random.random
    ) -> None:
        self._command = list(command)
        self._settings = settings
        self._uniform = uniform
        self._child: subprocess.Popen[bytes] | None = None
        self._told = threading.Event()

    def run(self) -> int:
        """Start the command, again and again where that may help; return the status of its last end.

        It is not started again when it was told to stop, ended well, does not understand its command line, or ended
        with status 1 at its first start: then somebody has to mend a setting. Once it has run, its settings were right,
        and what it cannot use comes back.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGALRM, self._kill)
        restarts = failures = 0
        while True:
            began = time.monotonic()
            status = self._once()
            if self._told.is_set() or status in (0, EXIT_USAGE) or (status == EXIT_FAILURE and not restarts):
                return status if status >= 0 else 128 - status
            lasted = time.monotonic() - began
            restarts += 1
            failures = 1 if lasted >= self._settings.reset_after_s else failures + 1
            delay = self.delay(failures)
            log.warning(
                "the process ended and is started again",
                status=status, reason=_reason(status), ran_s=round(lasted, 1), restart=restarts, in_s=round(delay, 1),
            )  # fmt: skip
            if self._told.wait(delay):
                return 0

    def delay(self, failures: int) -> float:
        """Return how long to wait after so many failures in a row, in seconds.

        Doubled each time; half of it is random, so that many processes that failed together do not return together.
        """
        first, last = self._settings.first_backoff_s, self._settings.last_backoff_s
        return min(last, first * 2.0 ** min(failures - 1, 60)) * (0.5 + 0.5 * self._uniform())

    def _once(self) -> int:
        self._child = subprocess.Popen(self._command, preexec_fn=tie())  # noqa: S603 (our own command line, no shell)
        if self._told.is_set():
            self._child.send_signal(signal.SIGTERM)
        return self._child.wait()

    def _stop(self, *_: Any) -> None:
        self._told.set()
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            signal.setitimer(signal.ITIMER_REAL, self._settings.stop_timeout_s)

    def _kill(self, *_: Any) -> None:
        if self._child is not None and self._child.poll() is None:
            log.error("the process did not stop in time and is killed", seconds=self._settings.stop_timeout_s)
            self._child.kill()


def _reason(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return REASONS.get(status, "unknown")
