"""The watermark of one run: the clock value that all its periodic sources have reached."""

from collections.abc import Iterable

from tamiyo.schemas.topics import PERIODIC_NAMES


class RunWatermark:
    """The watermark of one run: the slowest of the sources that send a frame for every sampled step.

    A frame names these sources, its companions. Before any frame has named one, the periodic topics seen so far stand
    in for them. Sporadic sources, such as errors, never hold the watermark back.
    """

    __slots__ = ("_companions", "_final", "_highest")

    def __init__(self) -> None:
        self._companions: set[str] = set()
        self._highest: dict[str, int] = {}
        self._final: set[str] = set()

    def observe(self, source: str, clock: int, companions: Iterable[str], final: bool) -> None:
        """Record one signal.

        Args:
            source: The topic its frame came from.
            clock: The frame's position on the run's clock, in steps or ms.
            companions: The sources that send a frame for every step this one does.
            final: Whether this is the source's last frame of the run.
        """
        self._companions.update(companions)
        if clock > self._highest.get(source, -1):
            self._highest[source] = clock
        if final:
            self._final.add(source)

    def value(self, delay: int) -> int | None:
        """Return the clock value that no periodic source will fall behind, or None before each has sent a frame.

        Args:
            delay: How far the watermark stays behind the slowest source, in the clock's unit.
        """
        expected = self._expected()
        if not expected or not expected <= self._highest.keys():
            return None
        return min(self._highest[source] for source in expected) - delay

    @property
    def finished(self) -> bool:
        """Return whether every periodic source has sent its last frame."""
        expected = self._expected()
        return bool(expected) and expected <= self._final

    def _expected(self) -> set[str]:
        return self._companions or {source for source in self._highest if source in PERIODIC_NAMES}
