"""How long a run has said nothing."""

from dataclasses import dataclass


@dataclass(slots=True)
class IdleTimer:
    """The silence of one run, as a stage hears it.

    Where everything on the log has been read, it began with the run's last record, at the broker's time, whichever
    process read that: else every rebalance would begin it anew, and a run that died would be held for as long as
    there are rebalances. While records wait, the run's may be among them, and only what passes here counts.
    """

    heard_ms: int | None = None
    """The broker's time of the newest record."""
    _touched: bool = True
    _since_ms: int = 0

    def record(self, timestamp_ms: int) -> None:
        """Take note of a record."""
        self._touched = True
        self.heard_ms = max(timestamp_ms, self.heard_ms or 0)

    def idle_ms(self, now_ms: int, *, backlog: int | None) -> int:
        """Return how long it has lasted; `backlog`: records known to wait on the log, None where nobody knows.

        Asked for at every look at the clock: what was heard since the look before is taken as heard now.
        """
        if self._touched:
            self._touched, self._since_ms = False, now_ms
        began_ms = self._since_ms
        if backlog == 0 and self.heard_ms is not None:
            began_ms = min(began_ms, self.heard_ms)
        return max(0, now_ms - began_ms)
