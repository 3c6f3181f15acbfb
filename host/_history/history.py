"""The history of an attached run, bounded in memory, and the callbacks that follow it."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, Generic, Literal, TypeVar

from tamiyo.host._history.events import AdaptationEvent, FrameScalars

log = logging.getLogger(__name__)

EVENTS_KEPT = 10_000
"""Events that a history keeps, the newest: about 4 MB."""
FRAMES_KEPT = 4096
"""Frames that a history keeps: about 1 MB, and more than a plot can show."""

T = TypeVar("T")


class History:
    """What an attached run has been through so far: its adaptation events, and the scalars of its frames.

    Memory is bounded. Of the events, the newest 10,000 stay. When there are 4,096 frames, each two neighbours become
    one, and so do as many frames that follow: the curve covers the whole run, evenly.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._events: deque[AdaptationEvent] = deque(maxlen=EVENTS_KEPT)
        self._frames: list[FrameScalars] = []
        self._group: list[FrameScalars] = []
        """Frames that are not enough yet to become one."""
        self._group_size = 1

    @property
    def events(self) -> list[AdaptationEvent]:
        """The events, oldest first."""
        return list(self._events)

    @property
    def frames(self) -> list[FrameScalars]:
        """The frames' scalars, oldest first."""
        return self._frames + ([_merged(self._group)] if self._group else [])

    def to_records(self, of: Literal["frames", "events"] = "frames") -> list[dict[str, Any]]:
        """Return rows of plain values, as `pandas.DataFrame` and `json.dumps` take them.

        Args:
            of: "frames" for the scalars of each frame, "events" for the adaptations.

        Raises:
            KeyError: `of` is neither.
        """
        rows: dict[str, list[Any]] = {"frames": self.frames, "events": self.events}
        return [dataclasses.asdict(row) for row in rows[of]]

    def __repr__(self) -> str:
        return f"History({len(self.frames)} frames, {len(self._events)} events)"

    def add(self, entry: AdaptationEvent | FrameScalars) -> None:
        """Keep an event, or the scalars of a frame.

        Args:
            entry: Newer than those before it.
        """
        if isinstance(entry, AdaptationEvent):
            self._events.append(entry)
            return
        self._group.append(entry)
        if len(self._group) == self._group_size:
            self._frames.append(_merged(self._group))
            self._group = []
        if len(self._frames) == FRAMES_KEPT:
            self._frames = [_merged(pair) for pair in zip(self._frames[::2], self._frames[1::2], strict=True)]
            self._group_size *= 2


def _merged(frames: Sequence[FrameScalars]) -> FrameScalars:
    """Return the last of consecutive frames, with the means and the last validation of all."""
    if len(frames) == 1:
        return frames[0]
    validated = next((frame for frame in reversed(frames) if frame.validation_loss is not None), frames[-1])
    accuracies = [frame.train_accuracy for frame in frames if frame.train_accuracy is not None]
    return dataclasses.replace(
        frames[-1],
        train_loss=fmean(frame.train_loss for frame in frames),
        train_accuracy=fmean(accuracies) if accuracies else None,
        validation_loss=validated.validation_loss,
        validation_accuracy=validated.validation_accuracy,
        throughput=fmean(frame.throughput for frame in frames),
        step_time_ms=fmean(frame.step_time_ms for frame in frames),
    )


class Subscribers(Generic[T]):
    """Callbacks for one kind of entry. An error in one is logged, at WARNING the first time, and goes no further."""

    def __init__(self) -> None:
        """Start without any."""
        self._callbacks: dict[object, Callable[[T], object]] = {}
        self._failed: set[object] = set()

    def add(self, callback: Callable[[T], object]) -> Callable[[], None]:
        """Call `callback` with every entry from now on; return a function that ends this."""
        key = object()
        self._callbacks[key] = callback

        def remove() -> None:
            self._callbacks.pop(key, None)

        return remove

    def call(self, entry: T) -> None:
        """Call every callback with an entry."""
        for key, callback in list(self._callbacks.items()):
            try:
                callback(entry)
            except Exception as error:  # training comes first: a callback may not end it
                level = logging.DEBUG if key in self._failed else logging.WARNING
                self._failed.add(key)
                log.log(level, "callback %r failed: %r; training continues", callback, error, exc_info=True)
