"""Distinguishes an outage of Kafka from one dead server of several, and reports each outage once."""

from __future__ import annotations

import logging

from confluent_kafka import KafkaError


class Outage:
    """The errors that librdkafka reports about a client's connections."""

    def __init__(self, log: logging.Logger) -> None:
        """Begin without an outage.

        Args:
            log: Receives one warning for each outage.
        """
        self._log = log
        self._reason = ""
        self._reported = False

    def on_error(self, error: KafkaError) -> None:
        """Take an error; it is the client's `error_cb`. One server's is the reason of an outage, not an outage."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._reason = str(error.str()).split(" (after ", 1)[0]
        else:
            self.report(self._reason or str(error.str()))

    def report(self, reason: str) -> None:
        """Warn that Kafka is unreachable, unless this outage was reported."""
        if not self._reported:
            self._reported = True
            self._log.warning("Kafka is unreachable; training continues without it: %s", reason)

    def end(self) -> None:
        """Note that Kafka responds: the next outage is reported again."""
        self._reported = False
