"""Reads the experience topic partition by partition, from offsets that the learner keeps itself."""

from collections.abc import Iterator, Mapping

import structlog
from confluent_kafka import Message

from tamiyo.schemas.client.partition_reader import OffsetRange, PartitionReader
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import EXPERIENCE
from tamiyo.streams.learner import metrics

log = structlog.get_logger(__name__)

UNREAD_TIMEOUT_S = 20.0


class ExperienceTopic:
    """All partitions of the topic, each with its read position."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        self.positions: dict[int, int] = {}
        """By partition, the offset of the next message to take."""
        self._kafka = kafka
        self._group = names.full("tamiyo_learner")
        self._topic = names.full(EXPERIENCE.name)
        self._reader = PartitionReader(
            kafka, self._group, {"auto.offset.reset": "error", "queued.max.messages.kbytes": 65_536}
        )

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Set the positions to `offsets`, or to the beginning of partitions that have none.

        Raises:
            BrokerError: the topic's partitions cannot be read.
        """
        for number in self._partitions():
            low, high = self._reader.bounds(self._topic, number)
            offset = offsets.get(number, low)
            if offset > high:
                # The topic was deleted and created again since the checkpoint.
                log.warning("offset beyond the end of the topic: reading it whole", partition=number, offset=offset)
                offset = low
            elif offset < low:
                log.error("experiences expired before they were learned from", partition=number, lost=low - offset)
                offset = low
            self.positions[number] = offset

    def tail(self, count: int) -> Iterator[Message]:
        """Yield up to `count` messages before the position of each partition; the positions do not move."""
        ranges = [
            OffsetRange(self._topic, number, max(self._reader.bounds(self._topic, number)[0], offset - count), offset)
            for number, offset in self.positions.items()
        ]
        try:
            yield from self._reader.read(ranges)
        except BrokerError as error:
            log.warning("earlier experiences cannot be read again", reason=str(error))

    def start(self) -> None:
        """Start reading at the positions."""
        self._reader.assign({(self._topic, number): offset for number, offset in self.positions.items()})
        log.info("reading experiences", positions=self.positions)

    def read(self, count: int) -> Iterator[Message]:
        """Yield up to `count` messages; a position moves past a message when the next one is requested.

        Raises:
            BrokerError: a partition cannot be read any more.
        """
        for message in self._reader.poll(count):
            yield message
            self.positions[message.partition() or 0] = (message.offset() or 0) + 1

    def refresh(self) -> int | None:
        """Add new partitions of the topic; return the lag in messages, None where the broker does not respond."""
        try:
            added = [number for number in self._partitions() if number not in self.positions]
            for number in added:
                self.positions[number] = self._reader.bounds(self._topic, number)[0]
                log.info("partition added", partition=number)
            if added:
                self._reader.add({(self._topic, number): self.positions[number] for number in added})
            lags = {
                number: max(0, self._reader.bounds(self._topic, number)[1] - offset)
                for number, offset in self.positions.items()
            }
            for number, lag in lags.items():
                metrics.LAG.labels(str(number)).set(lag)
            return sum(lags.values())
        except BrokerError as error:
            log.warning("no response from the broker", error=str(error))
            return None

    def unread(self) -> tuple[int, int] | None:
        """Return partition and offset of a message that a new consumer finds at or after the positions, or None.

        A lag alone proves nothing: a transaction's markers at the end of a partition are never read.
        """
        with PartitionReader(self._kafka, self._group) as fresh:
            try:
                ends = {number: fresh.bounds(self._topic, number)[1] for number in self.positions}
                ranges = [OffsetRange(self._topic, number, at, ends[number]) for number, at in self.positions.items()]
                found = next(fresh.read(ranges, timeout_s=UNREAD_TIMEOUT_S), None)
            except BrokerError:
                return None
            return None if found is None else (found.partition() or 0, found.offset() or 0)

    def _partitions(self) -> list[int]:
        found = self._reader.partitions(self._topic)
        if not found:
            raise BrokerError(f"the broker has no topic {self._topic}; `tamiyo topics create` creates it")
        return found
