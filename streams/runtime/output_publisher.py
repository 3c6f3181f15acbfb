"""Publishing to one partition number, for as long as the partition is held."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from functools import cached_property
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatchBuilder

from tamiyo.schemas.kafka import TopicNames
from tamiyo.streams.headers import KeyValueHeaders
from tamiyo.streams.runtime.faust.app import StageApp

CHECK_S = 0.02  # between two checks whether a heartbeat or a rebalance has come


def size_of(message: KeyValueHeaders) -> int:
    """Return the bytes of a message in a batch, as the producer estimates them."""
    size: int = DefaultRecordBatchBuilder.estimate_size_in_bytes(*message)
    return size


class OutputPublisher:
    """The producer side of one partition task."""

    def __init__(
        self, app: StageApp, names: TopicNames, partition: int, *, generation: int, session_timeout_s: float
    ) -> None:
        """Publish to `partition` of every topic while the group is at `generation`."""
        self.closed = False
        self._app = app
        self._names = names
        self.partition = partition
        self._generation = generation
        self._session_timeout_s = session_timeout_s

    def close(self) -> None:
        """Publish nothing more: the partition is lost."""
        self.closed = True

    async def may_publish(self) -> bool:
        """Wait until it is certain whether the partition is still held; return whether it is.

        A process that was paused past its session has lost its partitions and has not been notified. The last heartbeat
        that the coordinator accepted shows it: if that is too old, wait for a new one or for a rebalance.
        """
        while not self.closed:
            fresh = time.monotonic() - self._app.consumer_thread.last_heartbeat < self._session_timeout_s
            if fresh and not self._app.rebalancing and self._app.consumer_generation_id == self._generation:
                return True
            await asyncio.sleep(CHECK_S)
        return False

    def fits(self, message: KeyValueHeaders, room: int = 0) -> bool:
        """Return whether a message is as large as this process may send, and `room` bytes more, at most."""
        return size_of(message) <= self.largest + room

    @cached_property
    def largest(self) -> int:
        """The bytes that a message may have."""
        limit: int = self._app.producer.largest
        return limit

    async def send(self, topic: str, records: Sequence[KeyValueHeaders]) -> list[tuple[Awaitable[Any], int]]:
        """Hand records for the catalogue's `topic` to the producer, in order.

        Returns:
            What is done once the next so many of the records are delivered, and how many.
        """
        full = self._names.full(topic)
        sent: list[tuple[Awaitable[Any], int]] = await self._app.producer.send_records(full, self.partition, records)
        return sent
