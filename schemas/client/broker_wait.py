"""Waits for a broker that starts or fails over: it is back within seconds."""

import time
from collections.abc import Callable

from tamiyo.schemas.client.connection import Connection
from tamiyo.schemas.kafka import KafkaSettings

TRY_S = 2.0  # of one attempt; each failed one is reported


def wait_for_broker(
    kafka: KafkaSettings,
    timeout_s: float,
    *,
    report: Callable[[str, float], object],
    stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Wait until a connection to Kafka works.

    Args:
        kafka: the broker to connect to.
        timeout_s: seconds to wait for an unresponsive broker.
        report: called after each failed attempt with the reason and the seconds left.
        stopped: ends the wait once it returns True.

    Returns:
        Whether there is a connection; False where `stopped` ended the wait.

    Raises:
        BrokerError: no connection within `timeout_s`.
        BrokerRefused: credentials, certificates or permissions are wrong, so that waiting cannot help.
    """
    connection = Connection(kafka)
    deadline = time.monotonic() + timeout_s
    while not stopped():
        failure = connection.probe(max(0.1, min(TRY_S, deadline - time.monotonic())))
        if failure is None:
            return True
        left = deadline - time.monotonic()
        if failure.final or left <= 0:
            raise failure.error(kafka.bootstrap_servers)
        report(failure.reason, left)
    return False
