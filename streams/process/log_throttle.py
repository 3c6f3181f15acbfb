"""Libraries that say the same again and again, said once in a while.

While a broker is away, the clients of one worker together say four hundred times a second that they cannot reach it: a
quarter of an hour of that fills a log with what its first line said, and the last words of a process with nothing else.
"""

import logging
import time
from collections.abc import Callable, Collection

EVERY_S = 10.0
MAX_KINDS = 1_000  # messages told apart; more are a library that formats its own


class Repeats(logging.Filter):
    """Lets a library's message through once in `EVERY_S`, with the number of those left out since.

    Messages are the same if their logger, level and format are; what is ours always passes.
    """

    def __init__(self, libraries: Collection[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._libraries = frozenset(libraries)
        self._clock = clock
        self._kinds: dict[tuple[str, int, str], tuple[float, int]] = {}
        """When each was last let through, and how many were left out since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be told; adds to its message what was not."""
        if record.name.split(".")[0] not in self._libraries:
            return True
        kind = (record.name, record.levelno, str(record.msg))
        now = self._clock()
        told, left_out = self._kinds.pop(kind, (-EVERY_S, 0))
        if now - told < EVERY_S:
            self._kinds[kind] = (told, left_out + 1)
            return False
        self._kinds[kind] = (now, 0)
        if len(self._kinds) > MAX_KINDS:
            del self._kinds[next(iter(self._kinds))]
        if left_out:
            record.msg, record.args = f"{record.getMessage()} (and {left_out} times more in {now - told:.0f} s)", ()
        return True
