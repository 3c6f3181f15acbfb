"""The one line that a run prints when it is attached."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

from tamiyo.host._client.transport import Transport

log = logging.getLogger(__name__)


def announce(
    run_id: str, transport: Transport, *, watched: int, left_alone: Mapping[str, str], to_stderr: bool
) -> None:
    """Report whether a run is connected, to what, and how many layers are watched.

    The line goes to the log: INFO if the run is connected, else WARNING. If no handler of the program takes it, it goes
    to standard error, because a run that nobody decides about must not go unnoticed. The reasons why layers were left
    alone are logged at INFO.

    Args:
        run_id: The run.
        transport: Open.
        watched: Number of layers that are watched.
        left_alone: Reasons by the name of each layer that is not.
        to_stderr: False: log only.
    """
    layers = f"{watched} layer{'' if watched == 1 else 's'} watched"
    if left_alone:
        layers += f", {len(left_alone)} left alone (handle.left_alone has the reasons)"
    if transport.connected:
        level, state = logging.INFO, f"connected to {transport.destination}; {layers}"
    else:
        level = logging.WARNING
        state = f"NOT connected to {transport.destination}; {layers}; training continues, connecting is retried"
    line = f"tamiyo: run {run_id} is {state}"
    log.log(level, "%s", line)
    if to_stderr and not _taken(level):
        print(line, file=sys.stderr)
    for name, reason in left_alone.items():
        log.info("layer %s is left alone: %s", name, reason)


def _taken(level: int) -> bool:
    """Return whether a handler that the program has configured takes records of this level."""
    logger: logging.Logger | None = log
    while logger is not None:
        if any(not isinstance(each, logging.NullHandler) and each.level <= level for each in logger.handlers):
            return log.isEnabledFor(level)
        logger = logger.parent if logger.propagate else None
    return False
