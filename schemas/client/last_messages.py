"""Finds the newest messages of a topic without reading the whole topic."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import replace

from confluent_kafka import Message

from tamiyo.schemas.client.partition_reader import OffsetRange, PartitionReader

WIDENING = 4  # each round reads four times as much as the one before, so at most a third of what is read was not needed


def last_messages(
    reader: PartitionReader,
    ranges: Sequence[OffsetRange],
    count: int,
    wanted: Callable[[Message], bool] = lambda _: True,
    *,
    first_width: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Message]:
    """Return the newest messages of ranges, in the order of their Kafka times.

    It reads backwards from the end of each range, and stops in a range where all that is left is older than what was
    found, as far as times rise with offsets.

    Args:
        reader: an open reader.
        ranges: one range of each partition.
        count: how many messages to return.
        wanted: whether a message counts.
        first_width: offsets of each range that are read first; None: `count`.
        stopped: ends it once it returns True; the newest found so far are returned.

    Raises:
        BrokerError: a partition cannot be read.
    """
    newest: list[tuple[int, int, int, Message]] = []  # a heap, the oldest first; (partition, offset) is unique
    fronts = {each: each.end for each in ranges if each.start < each.end}
    oldest_ms: dict[int, int] = {}
    width = first_width or count
    while fronts and not stopped():
        parts = [replace(each, start=max(each.start, front - width), end=front) for each, front in fronts.items()]
        for message in reader.read(parts, stopped=stopped):
            time_ms, partition = message.timestamp()[1], message.partition() or 0
            oldest_ms[partition] = min(time_ms, oldest_ms.get(partition, time_ms))
            if wanted(message):
                heapq.heappush(newest, (time_ms, partition, message.offset() or 0, message))
                if len(newest) > count:
                    heapq.heappop(newest)
        fronts = {
            each: part.start
            for each, part in zip(fronts, parts, strict=True)
            if part.start > each.start
            and not (len(newest) == count and oldest_ms.get(each.partition, newest[0][0]) < newest[0][0])
        }
        width *= WIDENING
    return [message for *_, message in sorted(newest, key=lambda each: each[:3])]
