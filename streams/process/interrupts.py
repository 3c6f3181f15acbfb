"""To be stopped between two things, not in the middle of one."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """Within, Ctrl-C or SIGTERM sets the event, and a second one raises KeyboardInterrupt where it finds the program.

    An exception raised anywhere may be lost: in a callback that Python calls around a fork it is printed and ignored.
    And it may lose something: a record that was read and not yet taken.
    """
    told = threading.Event()

    def tell(*_: Any) -> None:
        if told.is_set():
            raise KeyboardInterrupt
        told.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` on Ctrl-C and SIGTERM from now on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop())


def stop_flag() -> Callable[[], bool]:
    """Return what tells, from now on, whether Ctrl-C or SIGTERM has come."""
    told = threading.Event()
    on_signals(told.set)
    return told.is_set
