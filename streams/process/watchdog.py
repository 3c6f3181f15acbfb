"""Notices that a process does not get on, and ends it: nothing is acknowledged, and a supervisor starts it again.

Three things are watched. The event loop (or the learner's) must come round: a thread watches, since a blocked loop
cannot. A stage for which records wait must move, and the consumer's group coordination must live
(`streams/runtime/liveness.py`).

Time is counted in looks that found nothing moved, not on a clock: a process that was frozen whole, or a machine that
slept, has not been stuck.
"""

import faulthandler
import sys
import threading
from collections.abc import Callable, Hashable
from typing import Any

from tamiyo.streams.process import exit_codes

LOOKS = 8  # within one patience: a sign of life just after a look is missed for an eighth of it at most


class StallDetector:
    """Counts looks that found the same sign of life."""

    def __init__(self) -> None:
        self._sign: Hashable = None
        self._looks = 0

    def check(self, sign: Hashable) -> int:
        """Return how many looks in a row, before this one, found the same."""
        self._looks = self._looks + 1 if sign == self._sign else 0
        self._sign = sign
        return self._looks

    def reset(self) -> None:
        """Begin to count anew: to stand still is right just now."""
        self._looks = 0


class LoopWatch:
    """A thread that ends the process when its loop does not come round."""

    def __init__(
        self,
        loop: str,
        turns: Callable[[], Hashable],
        patience_s: float,
        *,
        end: Callable[[int, str], Any] = exit_codes.abort,
    ) -> None:
        """`turns` returns something that changes with every turn of the loop."""
        self._loop = loop
        self._turns = turns
        self._patience_s = patience_s
        self._end = end
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()

    def _watch(self) -> None:
        still = StallDetector()
        while not self._stopped.wait(self._patience_s / LOOKS):
            if still.check(self._turns()) >= LOOKS:
                # Which line it hangs in is what one wants to know; this needs no lock that the hung thread may hold.
                faulthandler.dump_traceback(sys.__stderr__ or 2)
                words = f"watchdog: {self._loop} has not come round for {self._patience_s:.0f} s"
                self._end(exit_codes.EXIT_TEMPFAIL, words)
                return
