"""How long a run has sent nothing."""

from dataclasses import dataclass


@dataclass(slots=True)
class IdleTimer:
    """The idle time of one run.

    When everything on the log has been read, it counts from the run's last record, by its timestamp and whichever
    process read that record. Counting from what this process read would start anew with every rebalance, and a run that
    died would be kept for as long as partitions move. While records wait on the log, the run's may be among them, and
    only the time since the last one read here counts. A record that is read after everything had been read was written
    after that, whatever the clock shows that stamped it.
    """

    newest_ms: int | None = None
    """The highest timestamp of a record."""
    _since_ms: int = 0
    """The tick from which the run counts as idle here."""
    _active: bool = True
    """Whether a record was read since the last tick."""
    _not_before_ms: int | None = None
    """A time at which the last record was not written yet, where one is known."""

    def record(self, timestamp_ms: int) -> None:
        """Record that a record was read."""
        self._active = True
        self.newest_ms = max(timestamp_ms, self.newest_ms or 0)

    def idle_ms(self, now_ms: int, *, backlog: int | None, read_all_ms: int | None = None) -> int:
        """Return how long the run has been idle, in ms. Call it at every tick.

        Args:
            now_ms: The steady clock. Records read since the last call count as read now.
            backlog: Records known to wait on the log; None if unknown.
            read_all_ms: The last tick before this one at which no record waited on the log; None if there was none.
        """
        if self._active:
            self._active, self._since_ms, self._not_before_ms = False, now_ms, read_all_ms
        since_ms = self._since_ms
        if backlog == 0 and self.newest_ms is not None:
            written_ms = self.newest_ms if self._not_before_ms is None else max(self.newest_ms, self._not_before_ms)
            since_ms = min(since_ms, written_ms)
        return max(0, now_ms - since_ms)
