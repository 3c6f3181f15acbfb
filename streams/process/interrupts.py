"""Turns Ctrl-C and SIGTERM into a request to stop at the next safe point."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """Within the block, Ctrl-C or SIGTERM sets the event; a second one raises KeyboardInterrupt at once.

    An exception raised at any point may be lost: Python prints and ignores it in callbacks around a fork. It may also
    lose data: a record that was read and not yet processed.
    """
    stopped = threading.Event()

    def handle(*_: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` on Ctrl-C and SIGTERM from now on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop())


def stop_flag() -> Callable[[], bool]:
    """Return a function that returns whether Ctrl-C or SIGTERM has arrived since."""
    stopped = threading.Event()
    on_signals(stopped.set)
    return stopped.is_set
