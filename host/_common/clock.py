"""Time as the SDK reads it. The laboratory replaces it by computed time, so that a run repeats bit by bit."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Clock(Hashable, Protocol):
    """A source of time."""

    def seconds(self) -> float:
        """Return monotonic time, seconds."""

    def thread_seconds(self) -> float:
        """Return the processor time of the calling thread, seconds."""

    def time_ms(self) -> int:
        """Return the time of day, milliseconds since the epoch, UTC."""


class SystemClock:
    """The machine's time."""

    seconds = staticmethod(time.perf_counter)
    thread_seconds = staticmethod(time.thread_time)

    def time_ms(self) -> int:
        """Return the time of day, milliseconds since the epoch, UTC."""
        return int(time.time() * 1000)


_clock: Clock = SystemClock()


def current() -> Clock:
    """Return the clock in use."""
    return _clock


def seconds() -> float:
    """Return the monotonic time of the clock in use, seconds."""
    return _clock.seconds()


def thread_seconds() -> float:
    """Return the calling thread's processor time by the clock in use, seconds."""
    return _clock.thread_seconds()


def time_ms() -> int:
    """Return the time of day of the clock in use, milliseconds since the epoch, UTC."""
    return _clock.time_ms()


@contextmanager
def using(clock: Clock) -> Iterator[None]:
    """Let the whole process read `clock` inside the context."""
    global _clock
    previous, _clock = _clock, clock
    try:
        yield
    finally:
        _clock = previous
