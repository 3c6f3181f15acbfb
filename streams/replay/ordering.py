"""Holds a replay's telemetry back where its speed would show in what is computed.

Five topics have no order among them, and intake reads each as fast as it comes. In training a window closes well after
the last error in it was read; in a replay as fast as it goes it might close before, and the error would be late. So a
frame that leaves a run's window is published only when intake has read what belongs into that window. And one topic
read far ahead of the others would fill the windows stage to its limit, where it closes windows early; so no more is
published than a part of that limit before intake has read it.

Intake keeps nothing back: what it has committed, it has answered.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import BrokerError, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import BY_NAME, TELEMETRY
from tamiyo.streams.messages import Message
from tamiyo.streams.settings import WindowSettings

POLL_S = 0.02
MAX_AHEAD_BYTES = 16 * 1024 * 1024  # of 40 bytes a layer-signal at least: well below the million windows may hold

Place = tuple[str, int]


class IntakeOrder:
    """What was published to intake and is not yet known to be read."""

    def __init__(
        self,
        kafka: KafkaSettings,
        names: TopicNames,
        group: str,
        window: WindowSettings,
        ends: Mapping[Place, int] | None = None,
    ) -> None:
        """`group` is intake's, with the topics' prefix; its commits are read, it is never joined.

        `ends`: how many messages each partition has had already, where that is not 0.
        """
        self._names = names
        self._window = window
        self._consumer: Any = Consumer(
            kafka.librdkafka(**{"group.id": group, "enable.auto.commit": False, "log_level": 0})
        )
        self._published: dict[Place, int] = dict(ends or {})
        self._ahead: deque[tuple[Place, int, int]] = deque()
        """(place, its number there from 1, bytes), oldest first."""
        self._ahead_bytes = 0
        self._sporadic: dict[str, int] = {}
        """By run, the lowest window that sporadic frames belong to which are not known to be read."""
        self._sporadic_until: dict[Place, int] = {}
        self.waits = 0

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    def before(self, message: Message, meanwhile: Callable[[], None]) -> None:
        """Return when `message` may be published; calls `meanwhile` while it may not, which may raise to end that."""
        if self._leaves_a_window(message):
            self.waits += 1
            self._wait(lambda: not self._sporadic_until, meanwhile)
            self._sporadic.clear()
        if self._ahead_bytes > MAX_AHEAD_BYTES:
            self._wait(lambda: self._ahead_bytes <= MAX_AHEAD_BYTES // 2, meanwhile)

    def after(self, message: Message) -> None:
        """Take note that `message` was published; what intake does not read is none of its business."""
        if BY_NAME[message.topic] not in TELEMETRY:
            return
        place = (message.topic, message.partition)
        number = self._published[place] = self._published.get(place, 0) + 1
        size = len(message.value or b"")
        self._ahead.append((place, number, size))
        self._ahead_bytes += size
        frame = self._frame(message) if not BY_NAME[message.topic].periodic else None
        if frame is not None:
            window = self._number(frame)
            self._sporadic[frame.run_id] = min(window, self._sporadic.get(frame.run_id, window))
            self._sporadic_until[place] = number

    def _leaves_a_window(self, message: Message) -> bool:
        run_id = (message.key or b"").decode("utf-8", "replace")
        if not BY_NAME[message.topic].periodic or run_id not in self._sporadic:
            return False
        frame = self._frame(message)
        return frame is not None and (frame.final or self._number(frame) > self._sporadic[run_id])

    def _wait(self, done: Callable[[], bool], meanwhile: Callable[[], None]) -> None:
        self._look()
        while not done():
            meanwhile()
            time.sleep(POLL_S)
            self._look()

    def _look(self) -> None:
        asked = [TopicPartition(self._names.full(topic), number) for topic, number in self._published]
        try:
            committed = self._consumer.committed(asked, timeout=10)
        except KafkaException as error:
            raise BrokerError(f"intake's commits cannot be read: {error.args[0].str()}") from error
        read = {(self._names.bare(each.topic), each.partition): max(0, each.offset) for each in committed}
        self._sporadic_until = {place: n for place, n in self._sporadic_until.items() if n > read[place]}
        while self._ahead and self._ahead[0][1] <= read[self._ahead[0][0]]:
            self._ahead_bytes -= self._ahead.popleft()[2]

    def _number(self, frame: Any) -> int:
        clock = frame.step if self._window.clock == "step" else frame.time_ms
        return int(clock // self._window.width)

    @staticmethod
    def _frame(message: Message) -> Any:
        try:
            return decode(message.value, BY_NAME[message.topic].record)
        except SchemaError:
            return None  # intake will set it aside
