"""How far a run's own clock has come, and which of its windows were final when."""

from collections.abc import Iterable

from tamiyo.schemas.topics import PERIODIC_NAMES

REMEMBERED = 64  # closings of a run; a record older than all of them was answered long ago


class RunWatermark:
    """The watermark of one run: the slowest of the sources that tell of every sampled step."""

    __slots__ = ("_companions", "_final", "_highest")

    def __init__(self) -> None:
        self._companions: set[str] = set()
        self._highest: dict[str, int] = {}
        self._final: set[str] = set()

    def observe(self, source: str, clock: int, companions: Iterable[str], final: bool) -> None:
        """Take note of one record."""
        self._companions.update(companions)
        if clock > self._highest.get(source, -1):
            self._highest[source] = clock
        if final:
            self._final.add(source)

    def watermark(self, delay: int) -> int | None:
        """Return the clock value no source will fall behind again; None while one has not been heard of."""
        expected = self._expected()
        if not expected or not expected <= self._highest.keys():
            return None
        return min(self._highest[source] for source in expected) - delay

    @property
    def finished(self) -> bool:
        """Return whether every source has sent its last frame."""
        expected = self._expected()
        return bool(expected) and expected <= self._final

    def _expected(self) -> set[str]:
        return self._companions or {source for source in self._highest if source in PERIODIC_NAMES}


class FinalizedWindows:
    """Up to where one run's windows were final, and since which input offset.

    After a restart records are fed again that had their answer. What was final when a record first came, and what
    became final after, tells the late (again to be refused) from those that are inside a published window.
    """

    __slots__ = ("_entries", "floor")

    def __init__(self) -> None:
        self.floor = 0
        """Every window that ends here or before is final."""
        self._entries: list[tuple[int, int]] = []

    def add(self, end: int, offset: int) -> None:
        """Record that the windows up to `end` were final once the input at `offset` had been read."""
        self.floor = max(self.floor, end)
        self._entries.append((self.floor, offset))
        if len(self._entries) > REMEMBERED:
            del self._entries[0]

    def settle(self, offset: int) -> None:
        """Forget what no input beyond `offset` asks about: all before the last closing known by then."""
        known = [place for place, (_, closed_by) in enumerate(self._entries) if closed_by <= offset]
        del self._entries[: known[-1] if known else 0]

    def before(self, offset: int) -> int:
        """Return the floor as it was when the input at `offset` came."""
        for end, closed_by in reversed(self._entries):
            if closed_by < offset:
                return end
        return 0
