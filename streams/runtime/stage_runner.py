"""The Faust side of a stage: one app, one agent, and a task for every partition that is assigned."""

import asyncio
import os
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import structlog
from faust.types import TP
from pydantic_settings import BaseSettings

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.process.exit_codes import abort
from tamiyo.streams.process.malloc import trim
from tamiyo.streams.runtime import metrics
from tamiyo.streams.runtime.failures import cause_of, status_of
from tamiyo.streams.runtime.faust.app import create_app
from tamiyo.streams.runtime.faust.batch_handover import BatchSchema
from tamiyo.streams.runtime.input_log import InputLog
from tamiyo.streams.runtime.output_log import OutputLogReader
from tamiyo.streams.runtime.output_publisher import OutputPublisher
from tamiyo.streams.runtime.partition_task import PartitionTask
from tamiyo.streams.runtime.poison import PoisonTracker
from tamiyo.streams.runtime.restore import Restore
from tamiyo.streams.runtime.views import Views
from tamiyo.streams.settings import WorkerSettings
from tamiyo.streams.stages.base import Stage

log = structlog.get_logger(__name__)

GAUGES_S = (
    0.5  # between two updates of the gauges: with every tick they cost more than everything else of an idle worker
)


class StageRunner:
    """Runs one stage in one consumer group."""

    def __init__(
        self,
        stage: type[Stage],
        settings: BaseSettings,
        *,
        group: str,
        kafka: KafkaSettings,
        names: TopicNames,
        worker: WorkerSettings,
        views: Views,
        fetch_wait_ms: int,
        end_process: Callable[[int], Any] = os._exit,
    ) -> None:
        self.name = stage.name
        metrics.create_series(stage)
        self.worker = worker
        self.names = names
        self.views = views
        self.tasks: dict[int, PartitionTask] = {}
        """By partition number, from an assignment to the next."""
        self.stopping = False
        """Whether nothing is fed any more."""
        self.assigned = False
        """Whether an assignment has been received; an idle member of a group is assigned no partitions."""
        self._stage = stage
        self._settings = settings
        self._kafka = kafka
        self._fetch_wait_ms = fetch_wait_ms
        self._end_process = end_process
        self._group = group
        self._generation = -1
        self._preparing: asyncio.Task[None] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self.app = create_app(group, kafka, worker, fetch_wait_ms=fetch_wait_ms)
        self._restore = Restore(stage, self.app, names)
        channel = self.app.topic(
            *(names.full(topic.name) for topic in stage.inputs),
            schema=BatchSchema(),
        )
        self.app.agent(channel, name=f"tamiyo.{stage.name}")(self._consume)
        self.app.on_partitions_revoked.connect(self._revoked, weak=False)
        self.app.on_partitions_assigned.connect(self._assigned, weak=False)

    async def start(self) -> None:
        """Join the group; returns once partitions have been assigned for the first time."""
        self._ticking = asyncio.create_task(self._tick(), name=f"{self.name}-tick")
        await self.app.start()

    async def stop(self) -> None:
        """Feed nothing more, wait until everything published is delivered, commit, leave the group."""
        self.stopping = True
        if self._preparing is not None:
            self._preparing.cancel()
        await asyncio.gather(*(task.drain() for task in self.tasks.values()))
        if self.tasks:
            await self.app.consumer.commit()
        if self._ticking is not None:
            self._ticking.cancel()
        for task in self.tasks.values():
            task.close()
        await self.app.stop()

    @property
    def ready(self) -> bool:
        """Whether every assigned partition is restored and being fed."""
        return self.assigned and all(task.restored for task in self.tasks.values())

    @property
    def partitions(self) -> list[int]:
        """Return the partition numbers held."""
        return sorted(self.tasks)

    @property
    def progress(self) -> Hashable:
        """Return something that changes with every rebalance, and whenever a partition makes progress."""
        return self._generation, *(task.progress for task in self.tasks.values())

    def reader(self) -> OutputLogReader:
        """Return a reader of single partitions, to be entered."""
        return OutputLogReader(self._kafka, fetch_wait_ms=self._fetch_wait_ms)

    def fail(self, error: BaseException, at: Mapping[str, Any]) -> None:
        """End the process at once: a graceful stop would commit what was not finished."""
        status, what = status_of(error), cause_of(error)
        log.critical(
            f"{what} in stage {self.name}: the process ends, nothing more is acknowledged",
            stage=self.name, at=dict(at), error=repr(error), exc_info=error,
        )  # fmt: skip
        abort(status, f"{what} in stage {self.name}: {error!r}", end_process=self._end_process)

    async def _revoked(self, _sender: Any, _partitions: Any, **_: Any) -> None:
        if self._preparing is not None:
            self._preparing.cancel()
            self._preparing = None
        for task in self.tasks.values():
            task.close()
        self.tasks = {}
        self.app.consumer.forget_acknowledged()
        self.assigned = False

    async def _assigned(self, _sender: Any, partitions: set[TP], **_: Any) -> None:
        self._generation = self.app.consumer_generation_id
        metrics.REBALANCES.labels(self.name).inc()
        numbers = sorted({tp.partition for tp in partitions})
        self.tasks = {number: self._task(number) for number in numbers}
        self.assigned = True
        log.info("partitions assigned", stage=self.name, partitions=numbers, generation=self._generation)
        if numbers and not self.stopping:  # the consumer's thread may end before the partitions are restored
            self._preparing = asyncio.create_task(self._prepare(dict(self.tasks)), name=f"{self.name}-prepare")

    def _task(self, partition: int) -> PartitionTask:
        publisher = OutputPublisher(
            self.app, self.names, partition,
            generation=self._generation, session_timeout_s=self.worker.session_timeout_s,
        )  # fmt: skip
        inputs = InputLog(self.app, self.names, partition, self.reader)

        def acknowledge(topic: str, offset: int) -> None:
            self.app.consumer.acknowledge(TP(self.names.full(topic), partition), offset)

        return PartitionTask(self._stage, partition, self.worker, inputs, publisher, acknowledge, self.fail)

    async def _prepare(self, tasks: dict[int, PartitionTask]) -> None:
        try:
            await self.views.wait(self.worker.view_timeout_s)
            restored: dict[int, int] = {}
            async with self.reader() as reader:
                positions = await self._restore.positions(reader, list(tasks))
                # One after another: a worker that takes over many partitions keeps one's outputs in memory at a time.
                for number, task in tasks.items():
                    restored[number] = await self._begin(reader, task, positions[number])
            log.info("partitions restored", stage=self.name, outputs=restored)
            await asyncio.to_thread(trim)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.fail(error, {"stage": self.name, "partitions": sorted(tasks), "while": "restoring"})

    async def _begin(self, reader: OutputLogReader, task: PartitionTask, positions: dict[str, int]) -> int:
        """Restore a partition's stage and begin to feed it; return how many outputs it was restored from."""
        number = task.partition
        state, outputs = await self._restore.read(reader, number, positions)
        stage = self._stage(number, self._settings, self.views.by_name)
        # In a thread: thousands of records are decoded, and other stages share this event loop.
        await asyncio.to_thread(stage.restore, self._restore.prior_outputs(number, outputs))
        task.begin(stage, state, self._poison_tracker(number))
        return len(outputs)

    def _poison_tracker(self, number: int) -> PoisonTracker:
        # One file a partition: nobody else writes it while the partition is held here. The folder keeps its first name.
        path = Path(self.worker.state_dir) / "suspects" / f"{self._group}-{number}.json"
        return PoisonTracker(path, attempts=self.worker.poison_attempts)

    async def _consume(self, stream: Any) -> None:
        async for event in stream.noack().events():
            try:
                message = event.message
                task = self.tasks.get(message.partition)
                if self.stopping or task is None or message.generation_id != self._generation:
                    continue  # of an assignment that is over: the partition's next task reads it again
                await task.take(self.names.bare(message.topic), message.value)
            except Exception as error:  # Faust would acknowledge the event and go on
                self.fail(error, {"stage": self.name, "event": repr(event)})

    async def _tick(self) -> None:
        gauges_at = 0.0
        while True:
            await asyncio.sleep(self.worker.tick_ms / 1000)
            for task in self.tasks.values():
                task.tick()
            if (now := time.monotonic()) >= gauges_at:
                gauges_at = now + GAUGES_S
                self._set_gauges()

    def _set_gauges(self) -> None:
        metrics.OPEN_RECORDS.labels(self.name).set(sum(task.open_records for task in self.tasks.values()))
        metrics.PARTITIONS.labels(self.name).set(len(self.tasks))
        if self.ready:  # until then no position is known
            for topic in self._stage.inputs:
                lag = sum(task.lag(topic.name) for task in self.tasks.values())
                metrics.LAG.labels(self.name, topic.name).set(lag)
