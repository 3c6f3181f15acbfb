"""How long a run has sent nothing."""

from dataclasses import dataclass


@dataclass(slots=True)
class IdleTimer:
    """The idle time of one run.

    When everything on the log has been read, it counts from the run's last record, by the broker's time and whichever
    process read that record. Counting from what this process read would start anew with every rebalance, and a run that
    died would be kept for as long as partitions move. While records wait on the log, the run's may be among them, and
    only the time since the last one read here counts.
    """

    newest_ms: int | None = None
    """The highest broker time of a record."""
    _since_ms: int = 0
    """The tick from which the run counts as idle here."""
    _active: bool = True
    """Whether a record was read since the last tick."""

    def record(self, timestamp_ms: int) -> None:
        """Record that a record was read, with the broker's `timestamp_ms`."""
        self._active = True
        self.newest_ms = max(timestamp_ms, self.newest_ms or 0)

    def idle_ms(self, now_ms: int, *, backlog: int | None) -> int:
        """Return how long the run has been idle, in ms. Call it at every tick.

        Args:
            now_ms: The wall clock. Records read since the last call count as read now.
            backlog: Records known to wait on the log; None if unknown.
        """
        if self._active:
            self._active, self._since_ms = False, now_ms
        since_ms = self._since_ms
        if backlog == 0 and self.newest_ms is not None:
            since_ms = min(since_ms, self.newest_ms)
        return max(0, now_ms - since_ms)
