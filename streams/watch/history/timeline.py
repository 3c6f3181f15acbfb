"""A series of measurements over time, in bounded memory."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

Column = Any
"""An array of numbers, NaN where nothing was measured, or a list of arrays."""


class Timeline:
    """Points of a run in order of their time, each with a step, a revision and values.

    - Steps rise. A point at a step that is not above those of earlier points replaces these: the run went back to
      before that step. The result does not depend on the order in which points are taken.
    - At most `limit` points are kept. Beyond that every second one goes, and from then on only every second one is
      added: the newest of each group stands for its group. Until a group is full, its newest point is provisional:
      the last one, which the next replaces.

    Example:
        >>> series = Timeline({"loss": "d"}, limit=4)
        >>> for step in range(6):
        ...     series.add(step, 1000 + step, revision=step + 1, values={"loss": 1.0 / (step + 1)})
        >>> list(series.steps), series.full
        ([1, 3, 5], 3)
        >>> series.add(2, 2000, revision=7, values={"loss": 0.5})  # it started again from step 2
        >>> list(series.steps)
        [1, 2]
    """

    def __init__(self, columns: Mapping[str, str], *, limit: int, kept: Sequence[str] = ()) -> None:
        """Make an empty series.

        Args:
            columns: Type code of each column's array; "" for a column of any objects.
            limit: Most points that are kept.
            kept: Columns of numbers that are measured now and then: a group keeps its newest measurement.
        """
        self.limit = limit
        self.stride = 1
        """Points in a group."""
        self.times = array("q")
        self.steps = array("q")
        self.revisions = array("q")
        self.columns: dict[str, Column] = {name: array(code) if code else [] for name, code in columns.items()}
        self.rewritten = 0
        """Revision of the last change other than an appended point."""
        self._kept = tuple(kept)
        self._filled = 0
        """Points that the last group has had."""

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def full(self) -> int:
        """Number of points that are not provisional."""
        return len(self.steps) - (1 if self._filled < self.stride and self.steps else 0)

    def add(self, step: int, time_ms: int, revision: int, values: Mapping[str, Any]) -> None:
        """Add a point.

        Args:
            step: The step that was measured.
            time_ms: When that was known.
            revision: The change's.
            values: A value for each column.
        """
        place = bisect_right(self.times, time_ms)
        newest = place == len(self.times)
        if not newest and self.steps[place] <= step:
            return  # the run went back before this point was read
        first = bisect_left(self.steps, step, 0, place)
        if first < place:
            self._delete(first, place)
            self.rewritten = revision
            place = first
        if newest and self._filled < self.stride and len(self):
            self._replace_last(step, time_ms, revision, values)
            return
        if not newest:
            self.rewritten = revision
        for column, value in self._with(step, time_ms, revision, values):
            column.insert(place, value)
        if newest:
            self._filled = 1
        if len(self) > self.limit:
            self.thin(revision)

    def thin(self, revision: int) -> None:
        """Remove every second point."""
        last = len(self) % 2  # a point without a partner stays, and its group is not full
        for name in self._kept:
            column = self.columns[name]
            for place in range(1, len(column), 2):
                if column[place] != column[place]:
                    column[place] = column[place - 1]
        for column in self._all():
            alone = column[len(column) - last :]
            del column[::2]
            column.extend(alone)
        self._filled += 0 if last else self.stride
        self.stride *= 2
        self.rewritten = revision

    def clear(self, revision: int) -> None:
        """Remove all points."""
        self._delete(0, len(self))
        self.stride, self._filled, self.rewritten = 1, 0, revision

    def until(self, at_ms: int | None) -> int:
        """Return how many points there are up to a time."""
        return len(self.times) if at_ms is None else bisect_right(self.times, at_ms)

    def before(self, step: int) -> int:
        """Return the place of the newest point up to a step; -1 where there is none."""
        return bisect_right(self.steps, step) - 1

    def since(self, after: int, end: int) -> int:
        """Return the first of `end` points that is newer than a revision; 0 if the series was rewritten since."""
        return 0 if self.rewritten > after else bisect_right(self.revisions, after, 0, end)

    def _all(self) -> tuple[Column, ...]:
        return (self.times, self.steps, self.revisions, *self.columns.values())

    def _with(self, step: int, time_ms: int, revision: int, values: Mapping[str, Any]) -> list[tuple[Column, Any]]:
        mine = [(self.columns[name], values[name]) for name in self.columns]
        return [(self.times, time_ms), (self.steps, step), (self.revisions, revision), *mine]

    def _replace_last(self, step: int, time_ms: int, revision: int, values: Mapping[str, Any]) -> None:
        before = {name: self.columns[name][-1] for name in self._kept}
        for column, value in self._with(step, time_ms, revision, values):
            column[-1] = value
        for name, value in before.items():
            if self.columns[name][-1] != self.columns[name][-1]:
                self.columns[name][-1] = value
        self._filled += 1

    def _delete(self, first: int, end: int) -> None:
        if end == len(self):
            self._filled = self.stride  # a new group begins
        for column in self._all():
            del column[first:end]
