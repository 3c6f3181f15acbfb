"""Whether someone is interested in what costs requests."""

import threading
import time

KEPT_S = 15.0  # that an interest lasts after it was noted


class Interest:
    """Noted by those who are interested, and waited for by the one who does the work."""

    def __init__(self) -> None:
        """Nobody is interested yet."""
        self._noted = threading.Event()
        self._until = 0.0

    def note(self) -> None:
        """Be interested for the next `KEPT_S` seconds."""
        self._until = time.monotonic() + KEPT_S
        self._noted.set()

    def wait(self, timeout_s: float) -> bool:
        """Return whether someone is interested; wait for that for some seconds."""
        if time.monotonic() > self._until:
            self._noted.clear()
        return self._noted.wait(timeout_s)
