"""Detects a stalled process and ends it without further commits, for a supervisor to restart it.

Three things are checked. The event loop (or the learner's loop) must turn: a thread checks that, since a blocked loop
cannot. A stage with waiting records must progress, and the consumer's group coordination must work
(`streams/runtime/liveness.py`).

Stalls are measured in checks without progress, not on a clock: a process that was frozen as a whole, or a machine that
slept, has not stalled.
"""

import faulthandler
import sys
import threading
from collections.abc import Callable, Hashable
from typing import Any

from tamiyo.streams.process import exit_codes

CHECKS = 8  # within one timeout, so that a stall is detected after at most 9/8 of it


class StallDetector:
    """Counts consecutive checks without progress."""

    def __init__(self) -> None:
        self._progress: Hashable = None
        self._checks = 0

    def check(self, progress: Hashable) -> int:
        """Return how many consecutive checks before this one had the same `progress`."""
        self._checks = self._checks + 1 if progress == self._progress else 0
        self._progress = progress
        return self._checks

    def reset(self) -> None:
        """Restart the count, when no progress is expected."""
        self._checks = 0


class LoopWatch:
    """A thread that ends the process when its loop stops turning."""

    def __init__(
        self,
        loop: str,
        turns: Callable[[], Hashable],
        timeout_s: float,
        *,
        end: Callable[[int, str], Any] = exit_codes.abort,
    ) -> None:
        """Prepare the thread.

        Args:
            loop: name of the loop in messages.
            turns: returns a value that changes with every turn of the loop.
            timeout_s: seconds without a turn after which the process ends.
            end: ends the process, given an exit status and a reason.
        """
        self._loop = loop
        self._turns = turns
        self._timeout_s = timeout_s
        self._end = end
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start checking."""
        self._thread.start()

    def stop(self) -> None:
        """Stop checking."""
        self._stopped.set()

    def _watch(self) -> None:
        stalls = StallDetector()
        while not self._stopped.wait(self._timeout_s / CHECKS):
            if stalls.check(self._turns()) >= CHECKS:
                # Shows the line in which the loop hangs, without a lock that the hung thread may hold.
                faulthandler.dump_traceback(sys.__stderr__ or 2)
                reason = f"watchdog: {self._loop} has not turned for {self._timeout_s:.0f} s"
                self._end(exit_codes.EXIT_TEMPFAIL, reason)
                return
