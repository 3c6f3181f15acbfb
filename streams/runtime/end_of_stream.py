"""The end of a replay, as it passes through the stages.

A replay marks the end of every partition it publishes to. A stage that has met the mark on all its inputs has seen
everything that will come for this partition: it says what it still held (`flush`), and marks the end of its outputs.
So the last stage's marks mean that every stage has drained. A mark is acknowledged only when those that follow from it
are delivered; a worker that is killed in between meets it again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tamiyo.schemas.topics import Topic


@dataclass(frozen=True, slots=True)
class EndOfStream:
    """Nothing follows on the stage's partition of `topic`."""

    topic: Topic


class EndTracker:
    """Which inputs of one partition have ended."""

    def __init__(self, inputs: Iterable[str]) -> None:
        self._open = set(inputs)
        self._marks: dict[str, int] = {}
        self._passed_on = False

    def note(self, topic: str, offset: int) -> None:
        """Take the mark at `offset` of `topic`."""
        self._open.discard(topic)
        self._marks.setdefault(topic, offset)

    def due(self) -> bool:
        """Return whether all inputs have ended and that is now to be passed on; true once."""
        if self._open or self._passed_on:
            return False
        self._passed_on = True
        return True

    def bound(self, topic: str, offset: int) -> int:
        """Return `offset`, or that of the topic's mark where it is lower and was not passed on yet."""
        return offset if self._passed_on else min(offset, self._marks.get(topic, offset))
