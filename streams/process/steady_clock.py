"""The time of day that stages and their outputs use: it follows the wall clock, and never jumps with it.

A wall clock that is set jumps: an hour ahead, every run would count as idle and every held record as overdue; an hour
back, nothing would become due for an hour. The steady clock is the wall clock when the process starts. From then on it
runs with the monotonic clock, and comes closer to the wall clock by a tenth of the time that passes at most: a duration
is never wrong by more, and a clock that was an hour wrong at the start is right after ten hours.
"""

import threading
import time

SLEW = 10
"""The clock gains or loses at most one part of so many."""


class SteadyClock:
    """Milliseconds since the epoch that only grow, at nearly the speed of real time. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now_ns = time.time_ns()
        self._read_ns = time.monotonic_ns()

    def time_ms(self) -> int:
        """Return the time of day, milliseconds since the epoch, UTC."""
        with self._lock:
            wall_ns, read_ns = time.time_ns(), time.monotonic_ns()
            passed_ns = read_ns - self._read_ns
            behind_ns = wall_ns - self._now_ns - passed_ns
            most_ns = passed_ns // SLEW
            self._now_ns += passed_ns + max(-most_ns, min(most_ns, behind_ns))
            self._read_ns = read_ns
            return self._now_ns // 1_000_000


_clock = SteadyClock()


def time_ms() -> int:
    """Return the time of day of this process's steady clock, milliseconds since the epoch, UTC."""
    return _clock.time_ms()
