"""The work on one partition of one stage, from its assignment to the next rebalance.

A rebalance takes every partition away, and the group reads again from the committed offsets even if it gets the same
partitions back (aiokafka's eager protocol). So a task ends with it: its stage, its queued and held events and what it
had not published are dropped, and the next task begins from the committed offsets and the end of the stage's outputs.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any

import structlog

from tamiyo.schemas.client.tracing import traces
from tamiyo.streams.runtime.end_of_stream import EndOfStream
from tamiyo.streams.runtime.input_buffer import Acknowledge, InputBuffer
from tamiyo.streams.runtime.input_log import InputLog
from tamiyo.streams.runtime.output_pipeline import OutputPipeline
from tamiyo.streams.runtime.output_publisher import OutputPublisher
from tamiyo.streams.runtime.poison import PoisonTracker
from tamiyo.streams.runtime.restore import RestoredState
from tamiyo.streams.runtime.stage_call import StageCall
from tamiyo.streams.settings import WorkerSettings
from tamiyo.streams.stages.base import Stage

log = structlog.get_logger(__name__)

OnFailure = Callable[[BaseException, Mapping[str, Any]], None]
"""Ends the process at once, with nothing acknowledged; called with the error and the place."""


class PartitionTask:
    """Joins the parts of one partition: input buffer, stage call and output pipeline."""

    def __init__(
        self,
        stage: type[Stage],
        partition: int,
        worker: WorkerSettings,
        input_log: InputLog,
        publisher: OutputPublisher,
        acknowledge: Acknowledge,
        on_failure: OnFailure,
    ) -> None:
        """Take records of `partition`; they are fed after `begin`."""
        self.partition = partition
        self.closed = False
        self._stage = stage.name
        self._replay = worker.replay
        self._max_batch = worker.max_batch
        self._input_log = input_log
        self._publisher = publisher
        self._on_failure = on_failure
        self._inputs = InputBuffer(stage, worker, input_log, acknowledge)
        self._call: StageCall | None = None
        self._outputs: OutputPipeline | None = None
        self._feeding = False
        self._tick_due = False
        self._draining = False
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, stage: Stage, restored: RestoredState, poison: PoisonTracker) -> None:
        """Start to feed `stage`, which has been restored; `poison` contains failures of earlier processes."""
        if self.closed:
            return
        poison.forget_below(restored.positions)
        self._inputs.start(restored.positions, poison)
        backlog = None if self._replay else lambda: self._input_log.backlog(self._inputs.positions)
        spans = None if self._replay else traces()  # what a replay reads belongs to traces that have ended
        call = self._call = StageCall(
            stage, self.partition, dead_lettered=restored.poison, poison=poison, backlog=backlog, traces=spans
        )
        outputs = self._outputs = OutputPipeline(
            self._stage, self._inputs, self._publisher, restored, spans, call.forget
        )
        name = f"{self._stage}-{self.partition}"
        self._tasks = [
            asyncio.create_task(self._guarded(lambda: self._work(call, outputs)), name=name),
            asyncio.create_task(self._guarded(outputs.deliver), name=f"{name}-delivery"),
        ]
        self._wake.set()

    async def take(self, topic: str, records: Sequence[Any]) -> None:
        """Queue records of the catalogue's `topic`, as aiokafka gives them; waits while the buffer is full."""
        for start in range(0, len(records), self._max_batch):
            await self._inputs.put(topic, records[start : start + self._max_batch])
            self._wake.set()

    def tick(self) -> None:
        """Let the stage do soon what only time can trigger."""
        self._tick_due = True
        self._wake.set()

    async def drain(self) -> None:
        """Feed nothing more; return once everything published is delivered and acknowledged."""
        self._draining = True
        self._inputs.stop()
        self._wake.set()
        if self._tasks:
            await asyncio.wait(self._tasks[:1])

    def close(self) -> None:
        """Drop everything: the partition is lost."""
        self.closed = True
        self._publisher.close()
        for task in self._tasks:
            task.cancel()
        self._inputs.close()

    @property
    def restored(self) -> bool:
        """Whether the stage has its earlier outputs back and is being fed."""
        return self._call is not None

    @property
    def positions(self) -> Mapping[str, int]:
        """Return the next offset of each input topic."""
        return self._inputs.positions

    def lag(self, topic: str) -> int:
        """Return how many records of an input are still to be read, as far as the consumer knows; 0 until restored."""
        return self._input_log.backlog({topic: self.positions[topic]}) if topic in self.positions else 0

    @property
    def progress(self) -> Hashable:
        """Return something that changes whenever a record is read, delivered or acknowledged."""
        return None if self._outputs is None else self._outputs.progress, *self.positions.values()

    @property
    def busy(self) -> bool:
        """Whether records wait to be fed, are being fed, or wait to be delivered."""
        return bool(self._inputs.queued or self._feeding or (self._outputs is not None and self._outputs.in_flight))

    @property
    def open_records(self) -> int:
        """Return how many records are neither acknowledged nor dropped."""
        return self._inputs.open_records

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            read = {topic: offset - 1 for topic, offset in self.positions.items()}
            self._on_failure(error, {"stage": self._stage, "partition": self.partition, "read": read})

    async def _work(self, call: StageCall, outputs: OutputPipeline) -> None:
        while not self._draining:
            await self._wake.wait()
            self._wake.clear()
            while (self._inputs.queued or self._tick_due) and not self._draining:
                if self._inputs.queued:
                    await self._inputs.gather()
                    self._feeding = True
                    await self._feed(call, outputs)
                    self._feeding = False
                if self._tick_due:
                    self._tick_due = False
                    await outputs.publish(await call.tick(), call.stage.open_offsets())
                # Other partitions and stages share this event loop.
                await asyncio.sleep(0)
        await outputs.flush()

    async def _feed(self, call: StageCall, outputs: OutputPipeline) -> None:
        fed = await call.feed(await self._inputs.next_batch())
        await outputs.publish(fed, call.stage.open_offsets())
        if self._inputs.ends.due():
            log.info("all inputs have ended", stage=self._stage, partition=self.partition)
            rest = [*call.stage.flush(), *map(EndOfStream, call.stage.outputs)]
            await outputs.publish(rest, call.stage.open_offsets())
