"""Hand what a fetch brought of a partition to its stream as one event, and commit what the stage acknowledges.

Read against Faust 0.15.3 (`Consumer.getmany`, `Consumer._drain_messages`, `Consumer._wait_next_records`,
`Consumer._new_offset`, `Consumer._filter_tps_with_pending_acks`, `Consumer._add_gap`, `Consumer.track_message`,
`Consumer.on_buffer_full`, `Consumer.on_partitions_revoked`, `ConductorCompiler.build`) and mode-streaming 0.7.1
(`Service.wait_first`).

Faust makes a message, an event and four tasks of every record, and lists every acknowledged offset, to find the highest
without a gap before it. A stage's runner counts offsets itself (`OutputPipeline`), so all that is needed is
one event a fetch, with the records as its value, and the offset up to which a partition is done.
"""

from collections.abc import AsyncIterator
from typing import Any

from faust import Schema
from faust.transport.consumer import ConsumerMessage
from faust.transport.drivers.aiokafka import Consumer
from faust.types import TP


class BatchSchema(Schema):  # type: ignore[misc]
    """Leaves a batch's records as they are: the stage decodes them, and loses none that cannot be decoded."""

    def loads_key(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        """Return the key as it is."""
        return message.key

    def loads_value(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        """Return the records as they are."""
        return message.value


class NothingRead(dict[TP, int | None]):
    """Read offsets that forget: whatever Faust notes, nothing was read.

    Faust drops, without a log line, messages below the offset that it has noted. A hand-over that a rebalance suspends
    notes its offset after the rebalance has removed the old ones; where a partition comes back without a committed
    offset, or is sought back, everything up to that offset would be lost. Whether a record was fed before is known to
    the stage's runner (`InputBuffer.next_batch`).
    """

    def __getitem__(self, tp: TP) -> None:
        return None


class BatchHandover(Consumer):  # type: ignore[misc]
    """A consumer that hands over batches, whose value is the list of aiokafka's records."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._read_offset = NothingRead()
        self._done: dict[TP, int] = {}

    def acknowledge(self, tp: TP, offset: int) -> None:
        """Let the next commit move a partition to `offset`, the next one to read."""
        self._done[tp] = offset

    def forget_acknowledged(self) -> None:
        """Commit nothing more of what was acknowledged: the partitions are others now, or read again."""
        self._done.clear()

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """Yield one message for each partition that the next fetch brought records of."""
        records, active = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        if records is None or self.should_stop:
            return
        if not self.flow_active:
            try:
                await self.perform_seek()
            except Exception as error:
                self.log.warning("seeking to the committed offsets failed while the flow is suspended: %r", error)
            return
        for tp, found in records.items():
            if not self.flow_active or self.app.consumer_generation_id != generation:
                return
            if found and (active is None or tp in active or tp in self._buffered_partitions):
                yield tp, self._to_batch(tp, found, generation)

    def _to_batch(self, tp: TP, records: list[Any], generation: int) -> ConsumerMessage:
        last = records[-1]
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000.0,
            last.timestamp_type,
            headers=None,
            key=None,
            value=records,
            checksum=None,
            tp=tp,
            generation_id=generation,
        )

    def on_buffer_full(self, tp: TP) -> None:
        """Do nothing: a full queue makes the fetching loop wait for room."""

    def track_message(self, message: Any) -> None:
        """Do nothing: a batch is not acknowledged as one."""

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Do nothing: the offsets between two batches are those of the second batch's records."""

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Any:
        return (tp for tp in list(self._done) if topics is None or tp in topics or tp.topic in topics)

    def _new_offset(self, tp: TP) -> int | None:
        return self._done.get(tp)

    async def wait_first(self, *waiting: Any, **options: Any) -> Any:
        """Wait for the first of several; hand a message over directly if there is room for it.

        Outside a rebalance, with the producer's buffer empty and no stream's queue full, handing over does not block,
        so there is nothing to race.
        """
        if len(waiting) == 2 and not options and self._handover_cannot_block():
            message, suspended = waiting
            suspended.close()
            return await message
        return await super().wait_first(*waiting, **options)

    def _handover_cannot_block(self) -> bool:
        app = self.app
        return (
            self.flow_active
            and app.flow_control.is_active()
            and not app.producer.buffer.pending.qsize()
            and not any(channel.queue.full() for channel in app.topics)
        )
