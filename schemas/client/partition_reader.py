"""Reads partitions from chosen offsets, without joining a consumer group."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings

REQUEST_TIMEOUT_S = 20.0
FETCH_WAIT_MS = 100  # at the end of a partition; other partitions are read only after such a wait
POLL_S = 0.2
BATCH = 500  # messages taken from librdkafka's queue at once
# A partition that is new, or changes its leader, has none for a moment.
ELECTING = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError._TRANSPORT)
# librdkafka retries everything else by itself.
UNRECOVERABLE = (
    KafkaError._AUTO_OFFSET_RESET,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
)

Place = tuple[str, int]
"""Name of a topic on the broker, and a partition's number."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """Messages of one partition: from offset `start` to before `end`."""

    topic: str
    partition: int
    start: int
    end: int


class PartitionReader:
    """A consumer with assigned partitions. A context manager.

    Methods raise BrokerError where a request fails for `REQUEST_TIMEOUT_S`, or a partition cannot be read.
    """

    def __init__(
        self, kafka: KafkaSettings, group_id: str = "tamiyo-reader", options: Mapping[str, Any] | None = None
    ) -> None:
        """Make the consumer.

        Args:
            kafka: how to reach the broker.
            group_id: required by librdkafka; nothing is committed to the group, and only `committed` refers to it.
            options: further settings of librdkafka.
        """
        self._servers = kafka.bootstrap_servers
        settings = {
            "group.id": group_id,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": FETCH_WAIT_MS,
            "log_level": 0,
            **(options or {}),
        }
        self.consumer = Consumer(kafka.librdkafka(**settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self.consumer.close()

    def topics(self) -> dict[str, list[int]]:
        """Return the partitions of every topic on the broker."""
        # Without a name: a request for a missing topic would create it on a broker that creates topics on demand.
        found = self._request("topics", lambda: self.consumer.list_topics(timeout=REQUEST_TIMEOUT_S))
        return {name: sorted(topic.partitions) for name, topic in found.topics.items()}

    def cluster_id(self) -> str | None:
        """Return the id of the broker's cluster."""
        found = self._request("the cluster's id", lambda: self.consumer.list_topics(timeout=REQUEST_TIMEOUT_S))
        return None if found.cluster_id is None else str(found.cluster_id)

    def partitions(self, topic: str) -> list[int]:
        """Return the partitions of a topic, none where it does not exist."""
        return self.topics().get(topic, [])

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the first offset of a partition, and the offset that its next message will have."""
        place = TopicPartition(topic, partition)
        low, high = self._request(
            f"the offsets of {topic}/{partition}",
            lambda: self.consumer.get_watermark_offsets(place, timeout=REQUEST_TIMEOUT_S),
        )
        return int(low), int(high)

    def ranges(self, topic: str) -> list[OffsetRange]:
        """Return everything on a topic now, a range for each partition."""
        return [OffsetRange(topic, number, *self.bounds(topic, number)) for number in self.partitions(topic)]

    def offset_at(self, topic: str, partition: int, time_ms: int) -> int | None:
        """Return the first offset with a Kafka time of `time_ms` or later, None where there is none."""
        place = TopicPartition(topic, partition, max(0, time_ms))
        (found,) = self._request(
            f"the offset of a time in {topic}/{partition}",
            lambda: self.consumer.offsets_for_times([place], timeout=REQUEST_TIMEOUT_S),
        )
        return int(found.offset) if found.offset >= 0 else None

    def committed(self, places: Iterable[Place]) -> dict[Place, int]:
        """Return the offsets that the consumer group has committed, without the partitions that have none."""
        wanted = [TopicPartition(*place) for place in places]
        found = self._request("committed offsets", lambda: self.consumer.committed(wanted, timeout=REQUEST_TIMEOUT_S))
        return {(each.topic, each.partition): int(each.offset) for each in found if each.offset >= 0}

    def assign(self, starts: Mapping[Place, int]) -> None:
        """Read these partitions, each from its offset, and no others."""
        self.consumer.assign([TopicPartition(*place, offset) for place, offset in starts.items()])

    def add(self, starts: Mapping[Place, int]) -> None:
        """Read these partitions too."""
        self.consumer.incremental_assign([TopicPartition(*place, offset) for place, offset in starts.items()])

    def poll(self, count: int = BATCH, timeout_s: float = POLL_S) -> list[Message]:
        """Return up to `count` messages of the assigned partitions, none where none came within `timeout_s`."""
        messages: list[Message] = []
        for message in self.consumer.consume(count, timeout_s):
            error = message.error()
            if error is None:
                messages.append(message)
            elif error.fatal() or error.code() in UNRECOVERABLE:
                raise BrokerError(f"{message.topic()}/{message.partition()} cannot be read: {error.str()}")
        return messages

    def read(
        self,
        ranges: Sequence[OffsetRange],
        *,
        timeout_s: float | None = 30.0,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Message]:
        """Yield the messages of ranges, each range in order, until all are read or `stopped`.

        Raises:
            BrokerError: ranges have more messages, but none came for `timeout_s` seconds; None: wait without limit.
        """
        left = {(each.topic, each.partition): each.end for each in ranges if each.start < each.end}
        self.assign({(each.topic, each.partition): each.start for each in ranges if each.start < each.end})
        progressed = time.monotonic()
        try:
            while left and not stopped():
                messages = self.poll()
                for message in messages:
                    end = left.get((message.topic() or "", message.partition() or 0))
                    if end is not None and (message.offset() or 0) < end:
                        yield message
                finished = self._finished(left)
                if messages or finished:
                    progressed = time.monotonic()
                elif timeout_s is not None and time.monotonic() - progressed > timeout_s:
                    (topic, number), end = next(iter(left.items()))
                    raise BrokerError(f"no message of {topic}/{number} came for {timeout_s:.0f} s, before offset {end}")
        finally:
            self.consumer.unassign()

    def _finished(self, left: dict[Place, int]) -> bool:
        """Remove the partitions that are read to their ends; return whether there are any."""
        # Positions pass the offsets that compaction and transactions leave out, where no message ends a range.
        positions = self.consumer.position([TopicPartition(*place) for place in left])
        finished = [each for each in positions if each.offset >= left[each.topic, each.partition]]
        for each in finished:
            del left[each.topic, each.partition]
        if finished:
            self.consumer.incremental_unassign(finished)
        return bool(finished)

    def _request(self, what: str, request: Callable[[], T]) -> T:
        if not self.consumer.assignment():
            self.consumer.poll(0)  # librdkafka asks for a token of OAUTHBEARER in a poll only
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        while True:
            try:
                return request()
            except KafkaException as error:
                reason = error.args[0]
                if reason.code() not in ELECTING or time.monotonic() > deadline:
                    raise BrokerError(f"cannot read {what} from {self._servers}: {reason.str()}") from error
                time.sleep(POLL_S)
