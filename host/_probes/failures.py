"""Failures of measurements: each costs its own number, and none reaches the training loop."""

from __future__ import annotations

import logging
from types import TracebackType

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

    def isolated(self, measurement: str, layer_id: str | None = None) -> Isolated:
        """Let no error leave the context: it is recorded as a failure of `measurement`, and its number is unknown."""
        return Isolated(self, measurement, layer_id)


class Isolated:
    """The context that `Failures.isolated` returns; a class, because a generator costs several calls more."""

    __slots__ = ("_failures", "_layer_id", "_measurement")

    def __init__(self, failures: Failures, measurement: str, layer_id: str | None) -> None:
        self._failures = failures
        self._measurement = measurement
        self._layer_id = layer_id

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):  # training comes first, but an interruption goes on
            return False
        self._failures.record(self._measurement, error, self._layer_id)
        return True
