"""Which windows are final, and since which input offset.

After a restart, records are fed again that were processed before it. What was final when a record first arrived decides
that it was late then, and is late again; what became final later means that it is inside a published window.
"""

from collections import OrderedDict
from collections.abc import Iterable

from tamiyo.streams.stages.base import SHORT_ID
from tamiyo.streams.stages.recent_ids import RecentIds

MAX_RUNS = 100_000  # runs whose last window is remembered, so that a straggler of theirs is late, not a new window
MAX_SIGNALS = 50_000  # signals of closed windows remembered, so that a repeat is dropped and not counted as late
MAX_CLOSES = 64  # closes remembered of a run; records older than all of them are never read again


class FinalEnds:
    """The ends of one run's final windows, each with the offset of the input that made it final."""

    __slots__ = ("_closes", "end")

    def __init__(self) -> None:
        self.end = 0
        """Every window that ends here or before is final."""
        self._closes: list[tuple[int, int]] = []

    def add(self, end: int, offset: int) -> None:
        """Record that the input at `offset` made all windows up to `end` final."""
        self.end = max(self.end, end)
        self._closes.append((self.end, offset))
        if len(self._closes) > MAX_CLOSES:
            del self._closes[0]

    def discard_before(self, offset: int) -> None:
        """Drop the closes that no input beyond `offset` depends on: all before the last one made by then."""
        made = [place for place, (_, closed_by) in enumerate(self._closes) if closed_by <= offset]
        del self._closes[: made[-1] if made else 0]

    def end_before(self, offset: int) -> int:
        """Return the end of the last window that was final before the input at `offset` arrived, 0 if none was."""
        for end, closed_by in reversed(self._closes):
            if closed_by < offset:
                return end
        return 0


class FinalizedWindows:
    """The final windows of all runs of a partition, and the signals inside the newest of them."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, FinalEnds] = OrderedDict()
        """By run id, the run whose window closed last at the end."""
        self._signals = RecentIds(MAX_SIGNALS)

    def run(self, run_id: str) -> FinalEnds | None:
        """Return a run's final windows, or None if it has none that is remembered."""
        return self._runs.get(run_id)

    def contains(self, signal_id: str) -> bool:
        """Return whether a signal is inside a closed window."""
        return signal_id[:SHORT_ID] in self._signals

    def add(self, run_id: str, end: int, offset: int) -> FinalEnds:
        """Record that the input at `offset` made the windows of a run up to `end` final; return the run's ends."""
        ends = self._runs.pop(run_id, None) or FinalEnds()
        self._runs[run_id] = ends
        if len(self._runs) > MAX_RUNS:
            self._runs.popitem(last=False)
        ends.add(end, offset)
        return ends

    def close(self, run_id: str, end: int, offset: int, signal_ids: Iterable[str]) -> None:
        """Record the window up to `end` that the input at `offset` has just closed, with the signals inside."""
        self.add_signals(signal_ids)
        self.add(run_id, end, offset).discard_before(offset)  # every input fed from here on has a higher offset

    def add_signals(self, signal_ids: Iterable[str]) -> None:
        """Record the signals inside a closed window, by at least the first `SHORT_ID` digits of their ids."""
        for signal_id in signal_ids:
            self._signals.add(signal_id[:SHORT_ID])
