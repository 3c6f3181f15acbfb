"""What all feeds have: a thread that reads into a history."""

import threading
from types import TracebackType
from typing import Self

from tamiyo.schemas.errors import TamiyoError
from tamiyo.streams.watch.history import History

STOP_S = 5.0  # that reading may take to end; a request to a missing broker takes seconds
HELPER_STOP_S = 0.5  # that other threads may take, which hold nothing that must be closed


class Feed:
    """Reads into a history, in a thread of its own. A context manager: it starts and stops."""

    def __init__(self, history: History) -> None:
        """Prepare to read; nothing is read yet."""
        self.history = history
        self.stopping = threading.Event()
        self._read = threading.Event()
        self._error: TamiyoError | None = None
        self._threads = [threading.Thread(target=self._run, name="feed", daemon=True)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to read."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop reading, and wait for the thread."""
        self.stopping.set()
        reading, *others = self._threads
        for thread, timeout_s in ((reading, STOP_S), *((each, HELPER_STOP_S) for each in others)):
            if thread.is_alive():
                thread.join(timeout_s)

    def wait_until_read(self, timeout_s: float | None = None) -> bool:
        """Wait until everything is read that was there at the start; return whether it is.

        Args:
            timeout_s: Seconds to wait at most; None: without limit.

        Raises:
            TamiyoError: What ended the reading.
        """
        done = self._read.wait(timeout_s)
        if self._error is not None:
            raise self._error
        return done

    def read_all(self) -> None:
        """Read, and call `finished` once the history is complete; runs in the feed's thread."""
        raise NotImplementedError

    def finished(self) -> None:
        """Note that the history is complete."""
        if not self._read.is_set():
            self.history.update_source(reading=False)
            self._read.set()

    def _run(self) -> None:
        try:
            self.read_all()
        except TamiyoError as error:
            self._error = error
            self._end(str(error))
        except Exception as error:  # a bug: the page must not look as if it were current
            self._end(f"reading ended with an error of the program: {type(error).__name__}: {error}")
            raise

    def _end(self, problem: str) -> None:
        self.history.update_source(reading=False, problem=problem)
        self._read.set()
