"""Start every assigned partition at its committed offset, or at its beginning.

Read against Faust 0.15.3 (`AIOKafkaConsumerThread.seek_to_committed`, `Consumer.perform_seek`) and aiokafka 0.14.0
(`AIOKafkaConsumer.seek_to_committed`).

Faust leaves a partition without a committed offset where it is. Records that were fetched during a rebalance have moved
its position, so they would be skipped.
"""

from collections.abc import Mapping

from aiokafka import TopicPartition
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP


class SeekToCommitted(AIOKafkaConsumerThread):  # type: ignore[misc]
    """A consumer thread that seeks partitions without a committed offset too."""

    async def committed(self, partitions: set[TP]) -> dict[TP, int | None]:
        """Return the group's committed offset of each partition, None where there is none."""
        found: dict[TP, int | None] = await self.call_thread(self._committed, partitions)
        return found

    async def _committed(self, partitions: set[TP]) -> dict[TP, int | None]:
        consumer = self._ensure_consumer()
        return {tp: await consumer.committed(TopicPartition(tp.topic, tp.partition)) for tp in partitions}

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek every assigned partition; return the committed offsets that exist."""
        offsets: Mapping[TP, int] = await self.call_thread(self._seek_to_committed)
        return offsets

    async def _seek_to_committed(self) -> Mapping[TP, int]:
        consumer = self._ensure_consumer()
        offsets: dict[TP, int] = {}
        for partition in consumer.assignment():
            offset = await consumer.committed(partition)
            if offset is None:
                await consumer.seek_to_beginning(partition)
            else:
                consumer.seek(partition, offset)
                offsets[TP(partition.topic, partition.partition)] = offset
        return offsets
