"""Failures of measurements: each costs its own number, and none reaches the training loop."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


class Failures:
    """Counts failures, and logs each kind of them once."""

    def __init__(self) -> None:
        self.count = 0
        """Failures so far."""
        self._logged: set[tuple[str, str]] = set()

    def record(self, measurement: str, error: Exception, layer_id: str | None = None) -> None:
        """Count a failure; log it if it is the first of its measurement and its class of error.

        Args:
            measurement: What could not be measured.
            error: Why.
            layer_id: The layer concerned; None: the whole network.
        """
        self.count += 1
        kind = (measurement, type(error).__name__)
        if kind in self._logged:
            return
        self._logged.add(kind)
        where = "" if layer_id is None else f" of layer {layer_id}"
        log.warning(
            "cannot measure the %s%s: %s: %s; training continues, further failures of this kind are only counted",
            measurement,
            where,
            kind[1],
            error,
            exc_info=error,
        )

    @contextmanager
    def isolated(self, measurement: str, layer_id: str | None = None) -> Iterator[None]:
        """Let no error leave the context: it is recorded as a failure of `measurement`, and its number is unknown."""
        try:
            yield
        except Exception as error:  # training comes first
            self.record(measurement, error, layer_id)
