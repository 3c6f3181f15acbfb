"""The time that a partition's log shows, by the timestamps of its records.

Whoever wrote the records stamped them by its own wall clock, and a clock may be wrong or be set. A timestamp far below
the one before it is a clock that was set back, and adds nothing. Once everything on the log has been read, what follows
was written after that moment, so the log's time cannot pass faster than real time: a clock that is set ahead adds
nothing either. Only while a stage catches up does an hour between two records look like a clock that was set.
"""

STEP_BACK_MS = 10_000  # below the newest by more: a clock that was set; by less: two writers whose clocks differ
SLACK_MS = 10_000  # by which the log's time may run ahead of real time: a stage may be fed later than it ticks


class LogClock:
    """Time on one partition, in ms since the epoch by the clock that stamped the first record. It never goes back."""

    def __init__(self) -> None:
        self.ms = 0
        """The time of the newest record."""
        self._newest_ms: int | None = None
        """The highest timestamp, since a clock was set back last."""
        self._most_ms = float("inf")
        """Real time allows no more, as of the last tick."""
        self._read_all: tuple[int, int] | None = None
        """Real time and the log's time at the last tick at which everything on the log had been read."""
        self._quiet_since_ms: int | None = None
        """Real time at the first tick since the newest record."""

    def record(self, timestamp_ms: int) -> None:
        """Record that the next record of the log was read."""
        self._quiet_since_ms = None
        if self._newest_ms is None:
            self.ms = self._newest_ms = timestamp_ms
            return
        passed_ms = max(0, timestamp_ms - self._newest_ms)
        if passed_ms or timestamp_ms < self._newest_ms - STEP_BACK_MS:
            self._newest_ms = timestamp_ms
        self.ms = max(self.ms, int(min(self.ms + passed_ms, self._most_ms)))

    def tick(self, now_ms: int, *, read_all: bool) -> int:
        """Return the log's time, which goes on while no record arrives.

        Args:
            now_ms: Real time, at least that of the last tick.
            read_all: Whether the log is known to have nothing that was not read.
        """
        if self._quiet_since_ms is None:
            self._quiet_since_ms = now_ms
        log_ms = self.ms + max(0, now_ms - self._quiet_since_ms)
        if self._newest_ms is not None:
            if read_all:
                self._read_all = (now_ms, log_ms)
            if self._read_all is not None:
                then_ms, log_then_ms = self._read_all
                self._most_ms = log_then_ms + (now_ms - then_ms) + SLACK_MS
        return log_ms
