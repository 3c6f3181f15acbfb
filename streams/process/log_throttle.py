"""Limits repeated log messages of libraries.

During a broker outage the clients of one worker log four hundred connection failures a second. Without a limit, a
quarter of an hour of them hides everything else in the log.
"""

import logging
import time
from collections.abc import Callable, Collection

EVERY_S = 10.0
MAX_KINDS = 1_000  # more distinct messages than that come from a library that formats them itself


class RepeatFilter(logging.Filter):
    """Passes a library's message once in `EVERY_S` seconds, with the number of suppressed repeats.

    Messages repeat each other if logger, level and format are equal. Messages of other loggers always pass.
    """

    def __init__(self, libraries: Collection[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._libraries = frozenset(libraries)
        self._clock = clock
        self._kinds: dict[tuple[str, int, str], tuple[float, int]] = {}
        """When each last passed, and how many were suppressed since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record passes; appends the number of suppressed repeats to its message."""
        if record.name.split(".")[0] not in self._libraries:
            return True
        kind = (record.name, record.levelno, str(record.msg))
        now = self._clock()
        passed, suppressed = self._kinds.pop(kind, (-EVERY_S, 0))
        if now - passed < EVERY_S:
            self._kinds[kind] = (passed, suppressed + 1)
            return False
        self._kinds[kind] = (now, 0)
        if len(self._kinds) > MAX_KINDS:
            del self._kinds[next(iter(self._kinds))]
        if suppressed:
            message = f"{record.getMessage()} (and {suppressed} times more in {now - passed:.0f} s)"
            record.msg, record.args = message, ()
        return True
