"""How a pipeline process ends when it does not end well: with which status, and its last words.

    0    told to stop, and everything said is delivered and committed
    1    it never ran: a setting is wrong, or Kafka, its topics or the store cannot be used
    2    the command line is wrong
    70   a bug: the same input will raise again
    75   Kafka, the store or the process itself got stuck or failed: to start again may help

A supervisor (`streams/process/supervisor.py`, or a platform's own) starts the process again after 70, 75 and a signal.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

EXIT_FAILURE = 1
EXIT_SOFTWARE = 70
"""sysexits' EX_SOFTWARE."""
EXIT_TEMPFAIL = 75
"""EX_TEMPFAIL."""

LAST_WORDS_S = 2.0  # a blocked standard error, or a lock that a hung thread holds, must not keep the process alive


def abort(status: int, words: str, *, end_process: Callable[[int], Any] = os._exit) -> None:
    """End the process at once, with `words` as the last line on standard error.

    Nothing more is acknowledged or committed, as a graceful stop would do.
    """
    limit = threading.Timer(LAST_WORDS_S, end_process, (status,))
    limit.daemon = True
    limit.start()
    try:
        for handler in logging.getLogger().handlers:
            handler.flush()
        sys.stderr.write(f"tamiyo: {words}; the process ends with status {status}, and acknowledges nothing more\n")
        sys.stderr.flush()
        end_process(status)
    finally:
        limit.cancel()


def exit_without_cleanup(status: int) -> NoReturn:
    """End a process that has done everything, without taking it apart.

    Python frees every object of torch and its friends on the way out: more than a second of a processor, and many where
    others want it too, when a supervisor or platform counts the seconds of a graceful stop.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
