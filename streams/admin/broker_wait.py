"""A command waits a little for its broker, and says so: one that starts, or fails over, is back in seconds."""

import sys
import time
from collections.abc import Callable

from tamiyo.schemas.connection import Connection
from tamiyo.schemas.display import printable
from tamiyo.schemas.kafka import KafkaSettings
from tamiyo.streams.settings import CommandSettings

TRY_S = 2.0  # of one try, so often a line tells that it goes on


def _tell(line: str) -> None:
    sys.stderr.write(f"tamiyo: {printable(line)}\n")
    sys.stderr.flush()


def wait_for_broker(
    kafka: KafkaSettings, timeout_s: float | None = None, *, tell: Callable[[str], None] = _tell
) -> KafkaSettings:
    """Return `kafka` once its broker answers; `tell` hears of each try that failed.

    Raises BrokerError after `timeout_s` (that of the environment by default), BrokerRefused at once where another try
    cannot help.
    """
    timeout_s = CommandSettings().patience_s if timeout_s is None else timeout_s
    connection = Connection(kafka)
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        trouble = connection.probe(max(0.1, min(TRY_S, left)))
        if trouble is None:
            return kafka
        left = deadline - time.monotonic()
        if trouble.final or left <= 0:
            raise trouble.error(kafka.bootstrap_servers)
        tell(f"no broker answers yet at {kafka.bootstrap_servers} ({trouble.reason}); giving up in {left:.0f} s")
