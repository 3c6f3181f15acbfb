"""The experience topic, read partition by partition from offsets of one's own: no consumer group has a say."""

import time
from collections.abc import Iterator, Mapping

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from tamiyo.schemas.connection import of_the_group
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import EXPERIENCE
from tamiyo.streams.learner import metrics

log = structlog.get_logger(__name__)

POLL_S = 0.2
REQUEST_TIMEOUT_S = 20.0
REFILL_BATCH = 500


class ExperienceTopic:
    """All partitions of the topic, and how far each has been taken."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        self.positions: dict[int, int] = {}
        """By partition, the offset of the first message that was not taken."""
        self._topic = names.full(EXPERIENCE.name)
        self._config = kafka.librdkafka(
            **{
                "group.id": names.full("tamiyo_learner"),  # librdkafka wants one; nothing is committed to it
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "queued.max.messages.kbytes": 65_536,
            }
        )
        self._consumer = Consumer(self._config)

    def close(self) -> None:
        """Stop reading."""
        self._consumer.close()

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Stand at `offsets`, partitions without one at their beginning; raises BrokerError where that fails."""
        for number in self._partitions():
            low, high = self._marks(number)
            offset = offsets.get(number, low)
            if offset > high:
                # The topic is not the one that the checkpoint read: it was made anew.
                log.warning("the topic ends before its offset: reading it whole", partition=number, offset=offset)
                offset = low
            elif offset < low:
                log.error("experiences are gone before they were learned", partition=number, lost=low - offset)
                offset = low
            self.positions[number] = offset

    def tail(self, count: int) -> Iterator[Message]:
        """Yield what lies up to `count` messages before each position; the positions stay where they are."""
        starts = {number: max(self._marks(number)[0], offset - count) for number, offset in self.positions.items()}
        left = {number: self.positions[number] for number, start in starts.items() if start < self.positions[number]}
        self._consumer.assign([TopicPartition(self._topic, number, starts[number]) for number in left])
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        while left:
            if time.monotonic() > deadline:
                log.warning("what lies before could not be read again", partitions=sorted(left))
                return
            for message in self._consumer.consume(REFILL_BATCH, POLL_S):
                if message.error() is None and message.offset() < self.positions[message.partition()]:
                    deadline = time.monotonic() + REQUEST_TIMEOUT_S
                    yield message
            # Positions pass what transactions left out, where no message ends a stretch.
            for place in self._consumer.position([TopicPartition(self._topic, number) for number in left]):
                if place.offset >= left[place.partition]:
                    del left[place.partition]

    def start(self) -> None:
        """Begin to read at the positions."""
        self._consumer.assign([TopicPartition(self._topic, *place) for place in self.positions.items()])
        log.info("reading experiences", positions=self.positions)

    def read(self, count: int) -> Iterator[Message]:
        """Yield up to `count` messages, and move past each once it was taken; raises BrokerError if reading is over."""
        for message in self._consumer.consume(count, POLL_S):
            error = message.error()
            if error is None:
                yield message
                self.positions[message.partition()] = message.offset() + 1
            elif error.fatal() or error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.UNKNOWN_TOPIC_OR_PART):
                raise BrokerError(f"{self._topic} cannot be read on: {error.str()}")
            elif not of_the_group(error):
                log.warning("reading experiences", error=error.str())  # librdkafka tries again by itself

    def refresh(self) -> int | None:
        """Take on partitions that were added; return the lag in messages, None where the broker does not answer."""
        try:
            added = [number for number in self._partitions() if number not in self.positions]
            for number in added:
                self.positions[number] = self._marks(number)[0]
                log.info("a partition was added", partition=number)
            if added:
                self._consumer.incremental_assign(
                    [TopicPartition(self._topic, number, self.positions[number]) for number in added]
                )
            lags = {number: max(0, self._marks(number)[1] - offset) for number, offset in self.positions.items()}
            for number, lag in lags.items():
                metrics.LAG.labels(str(number)).set(lag)
            return sum(lags.values())
        except BrokerError as error:
            log.warning("the broker does not answer", error=str(error))
            return None

    def unread(self) -> tuple[int, int] | None:
        """Return partition and offset of a message that a new consumer finds at or after the positions, or None.

        The lag does not tell: what a transaction left at the end is never read.
        """
        consumer = Consumer({**self._config, "auto.offset.reset": "earliest", "enable.partition.eof": True})
        try:
            left = set(self.positions)
            consumer.assign([TopicPartition(self._topic, *place) for place in self.positions.items()])
            deadline = time.monotonic() + REQUEST_TIMEOUT_S
            while left and time.monotonic() < deadline:
                message = consumer.poll(POLL_S)
                if message is not None and message.error() is None:
                    return int(message.partition()), int(message.offset())
                if message is not None and message.error().code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition())
            return None
        finally:
            consumer.close()

    def _partitions(self) -> list[int]:
        try:
            found = self._consumer.list_topics(self._topic, timeout=REQUEST_TIMEOUT_S).topics[self._topic]
        except KafkaException as error:
            raise BrokerError(f"the partitions of {self._topic} cannot be counted: {error}") from error
        return sorted(found.partitions)

    def _marks(self, number: int) -> tuple[int, int]:
        try:
            place = TopicPartition(self._topic, number)
            low, high = self._consumer.get_watermark_offsets(place, timeout=REQUEST_TIMEOUT_S)
        except KafkaException as error:
            raise BrokerError(f"the ends of {self._topic} cannot be read: {error}") from error
        return int(low), int(high)
