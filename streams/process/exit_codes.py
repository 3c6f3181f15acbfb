"""Exit statuses of a pipeline process (as in sysexits.h), and two ways to exit with one.

    0    stopped on request; all outputs are delivered and committed
    1    never ran: a setting is wrong, or Kafka, its topics or the store cannot be used
    2    wrong command line
    70   a bug: the same input will raise again
    75   Kafka, the store or the process failed or stalled: a restart may help
    78   Kafka refuses what worked before: a permission, a topic or a setting has to be corrected

A supervisor (`streams/process/supervisor.py`, or a platform's own) restarts the process after 70, 75, 78 and a signal.
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
EXIT_CONFIG = 78
"""EX_CONFIG."""

ABORT_TIMEOUT_S = 2.0  # a blocked standard error, or a lock of a hung thread, must not keep the process alive


def abort(status: int, reason: str, *, end_process: Callable[[int], Any] = os._exit) -> None:
    """End the process at once, with `reason` as the last line on standard error.

    Unlike a graceful stop, it commits nothing more.
    """
    limit = threading.Timer(ABORT_TIMEOUT_S, end_process, (status,))
    limit.daemon = True
    limit.start()
    try:
        for handler in logging.getLogger().handlers:
            handler.flush()
        sys.stderr.write(f"tamiyo: {reason}; exiting with status {status} without further commits\n")
        sys.stderr.flush()
        end_process(status)
    finally:
        limit.cancel()


def exit_without_cleanup(status: int) -> NoReturn:
    """End a process that has finished its work, without Python's cleanup.

    Python would free every object of torch and other libraries: more than a second of processor time, and several on
    a busy machine, while a supervisor or platform limits the seconds of a graceful stop.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
