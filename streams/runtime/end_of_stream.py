"""The end of a replay, as it passes through the stages.

A replay publishes an end marker to every partition that it writes. A stage that has read the end markers of all its
inputs has seen everything that will come for this partition: it publishes what it still holds (`Stage.flush`), and an
end marker to each of its outputs. So the end markers of the last stage mean that every stage has drained. An end marker
is acknowledged only when those that follow from it are delivered; a worker that is killed in between reads it again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tamiyo.schemas.topics import Topic


@dataclass(frozen=True, slots=True)
class EndOfStream:
    """An end marker to publish: nothing follows on the stage's partition of `topic`."""

    topic: Topic


class EndTracker:
    """Which inputs of one partition have ended."""

    def __init__(self, inputs: Iterable[str]) -> None:
        self._open = set(inputs)
        self._markers: dict[str, int] = {}
        self._passed_on = False

    def record(self, topic: str, offset: int) -> None:
        """Record the end marker at `offset` of `topic`."""
        self._open.discard(topic)
        self._markers.setdefault(topic, offset)

    def due(self) -> bool:
        """Return whether all inputs have ended and end markers have to be published now; true once."""
        if self._open or self._passed_on:
            return False
        self._passed_on = True
        return True

    def bound(self, topic: str, offset: int) -> int:
        """Return `offset`, or that of the topic's end marker if it is lower and has not been passed on."""
        return offset if self._passed_on else min(offset, self._markers.get(topic, offset))
