"""Holds telemetry back where the speed of a replay could change its results.

The five telemetry topics have no order among each other. In training a window closes well after the last error event in
it was read. In a fast replay it could close earlier, and the event would be late. So a frame that leaves a run's window
is published only when intake has read the sporadic frames of that window.

A topic read far ahead of the others could also fill the windows stage to its limit, where it closes windows early. So
only a part of that limit is published before intake has read it.

Intake publishes its outputs before it commits their inputs, so its committed offsets show what it has read.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import BY_NAME, TELEMETRY
from tamiyo.streams.messages import Message
from tamiyo.streams.settings import WindowSettings

POLL_S = 0.02
MAX_AHEAD_BYTES = 16 * 1024 * 1024  # at 40 bytes a layer-signal or more, well below the million that windows may hold

Place = tuple[str, int]


class IntakeOrder:
    """Tracks which published telemetry intake has not committed yet."""

    def __init__(
        self,
        kafka: KafkaSettings,
        names: TopicNames,
        group: str,
        window: WindowSettings,
        ends: Mapping[Place, int] | None = None,
    ) -> None:
        """Start with nothing published.

        Args:
            kafka: the broker.
            names: topic names under the replay's prefix.
            group: intake's consumer group, with the prefix; its commits are read, it is never joined.
            window: settings of the windows stage.
            ends: by catalogue name and partition, how many messages there are already, where that is not 0.
        """
        self._names = names
        self._window = window
        self._reader = PartitionReader(kafka, group)
        self._published: dict[Place, int] = dict(ends or {})
        self._ahead: deque[tuple[Place, int, int]] = deque()
        """(partition, number of the message there from 1, bytes), oldest first."""
        self._ahead_bytes = 0
        self._sporadic: dict[str, int] = {}
        """By run, the lowest window with sporadic frames that intake may not have read."""
        self._sporadic_until: dict[Place, int] = {}
        self.waits = 0

    def close(self) -> None:
        """Disconnect."""
        self._reader.close()

    def before(self, message: Message, meanwhile: Callable[[], None]) -> None:
        """Return when `message` may be published; calls `meanwhile` until then, which may raise to end that."""
        if self._leaves_a_window(message):
            self.waits += 1
            self._wait(lambda: not self._sporadic_until, meanwhile)
            self._sporadic.clear()
        if self._ahead_bytes > MAX_AHEAD_BYTES:
            self._wait(lambda: self._ahead_bytes <= MAX_AHEAD_BYTES // 2, meanwhile)

    def after(self, message: Message) -> None:
        """Record that `message` was published; topics that intake does not read are ignored."""
        if BY_NAME[message.topic] not in TELEMETRY:
            return
        place = (message.topic, message.partition)
        number = self._published[place] = self._published.get(place, 0) + 1
        size = len(message.value or b"")
        self._ahead.append((place, number, size))
        self._ahead_bytes += size
        frame = self._frame(message) if not BY_NAME[message.topic].periodic else None
        if frame is not None:
            window = self._window_of(frame)
            self._sporadic[frame.run_id] = min(window, self._sporadic.get(frame.run_id, window))
            self._sporadic_until[place] = number

    def _leaves_a_window(self, message: Message) -> bool:
        run_id = (message.key or b"").decode("utf-8", "replace")
        if not BY_NAME[message.topic].periodic or run_id not in self._sporadic:
            return False
        frame = self._frame(message)
        return frame is not None and (frame.final or self._window_of(frame) > self._sporadic[run_id])

    def _wait(self, done: Callable[[], bool], meanwhile: Callable[[], None]) -> None:
        self._update()
        while not done():
            meanwhile()
            time.sleep(POLL_S)
            self._update()

    def _update(self) -> None:
        """Forget what intake has committed."""
        committed = self._reader.committed((self._names.full(topic), number) for topic, number in self._published)
        read = {place: committed.get((self._names.full(place[0]), place[1]), 0) for place in self._published}
        self._sporadic_until = {place: n for place, n in self._sporadic_until.items() if n > read[place]}
        while self._ahead and self._ahead[0][1] <= read[self._ahead[0][0]]:
            self._ahead_bytes -= self._ahead.popleft()[2]

    def _window_of(self, frame: Any) -> int:
        clock = frame.step if self._window.clock == "step" else frame.time_ms
        return int(clock // self._window.width)

    @staticmethod
    def _frame(message: Message) -> Any:
        try:
            return decode(message.value, BY_NAME[message.topic].record)
        except SchemaError:
            return None  # intake rejects it
