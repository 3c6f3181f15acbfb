"""What every worker process of a pool does first."""

import multiprocessing
import os
import signal
from threading import Thread


def prepare() -> None:
    """End at Ctrl-C at once, as files are written whole, and with the parent process, however that ends.

    A pool's processes wait for the next job for ever, also after a signal has ended the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
