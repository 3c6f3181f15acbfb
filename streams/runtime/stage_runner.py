"""The Faust side of a stage: one app, one agent, and a tenure for every partition that is assigned."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from aiokafka.errors import KafkaError
from faust.exceptions import FaustError
from faust.types import TP
from pydantic_settings import BaseSettings

from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import BrokerError, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import Topic
from tamiyo.streams.headers import ID_HEADER, POISON_HEADER
from tamiyo.streams.process.exit_codes import EXIT_SOFTWARE, EXIT_TEMPFAIL, abort
from tamiyo.streams.process.malloc import trim
from tamiyo.streams.runtime import metrics
from tamiyo.streams.runtime.encoding import Headers
from tamiyo.streams.runtime.faust.app import StageConsumerThread, create_app
from tamiyo.streams.runtime.output_log import OutputLogReader, Told
from tamiyo.streams.runtime.partition_task import PartitionTask, RestoredState
from tamiyo.streams.runtime.poison import PoisonTracker
from tamiyo.streams.runtime.views import Views
from tamiyo.streams.settings import WorkerSettings
from tamiyo.streams.stages.base import PriorOutput, Stage

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Output:
    """What a stage said before, as it lies on the log."""

    topic: Topic
    partition: int
    identity: str
    told: Told


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
        self.worker = worker
        self.names = names
        self.views = views
        self.tenures: dict[int, PartitionTask] = {}
        """By partition number, from an assignment to the next."""
        self.stopping = False
        """Whether nothing is fed any more."""
        self.assigned = False
        """Whether the group's coordinator has spoken; an idle member of a group is assigned nothing, but assigned."""
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
        channel = self.app.topic(
            *(names.full(topic.name) for topic in stage.inputs),
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
        )
        self.app.agent(channel, name=f"tamiyo.{stage.name}")(self._consume)
        self.app.on_partitions_revoked.connect(self._revoked, weak=False)
        self.app.on_partitions_assigned.connect(self._assigned, weak=False)

    # Life

    async def start(self) -> None:
        """Join the group; returns once partitions have been assigned for the first time."""
        self._ticking = asyncio.create_task(self._tick(), name=f"{self.name}-tick")
        await self.app.start()

    async def stop(self) -> None:
        """Feed nothing more, publish and acknowledge what was said, commit, leave the group."""
        self.stopping = True
        if self._preparing is not None:
            self._preparing.cancel()
        await asyncio.gather(*(tenure.drain() for tenure in self.tenures.values()))
        if self.tenures:
            await self.app.consumer.commit()
        if self._ticking is not None:
            self._ticking.cancel()
        for tenure in self.tenures.values():
            tenure.close()
        await self.app.stop()

    @property
    def ready(self) -> bool:
        """Whether every assigned partition has recalled what it said and is being fed."""
        return self.assigned and all(tenure.stage is not None for tenure in self.tenures.values())

    @property
    def partitions(self) -> list[int]:
        """Return the partition numbers held."""
        return sorted(self.tenures)

    def fail(self, error: BaseException, *, at: Mapping[str, Any]) -> None:
        """End the process at once: a graceful stop would commit what was not finished."""
        status = status_of(error)
        what = "Kafka or a store failed" if status == EXIT_TEMPFAIL else "a bug"
        log.critical(
            f"{what} in stage {self.name}: the process ends, nothing more is acknowledged",
            stage=self.name, at=dict(at), error=repr(error), exc_info=error,
        )  # fmt: skip
        abort(status, f"{what} in stage {self.name}: {error!r}", end_process=self._end_process)

    @property
    def progress(self) -> Hashable:
        """Return something that changes with every rebalance, and whenever a partition gets on."""
        return self._generation, *(tenure.progress for tenure in self.tenures.values())

    @property
    def thread(self) -> StageConsumerThread:
        """The consumer's own."""
        thread: StageConsumerThread = self.app.consumer._thread
        return thread

    def reader(self) -> OutputLogReader:
        """Return a reader of single partitions, to be entered."""
        return OutputLogReader(self._kafka, fetch_wait_ms=self._fetch_wait_ms)

    # Assignment

    async def _revoked(self, _sender: Any, _partitions: Any, **_: Any) -> None:
        if self._preparing is not None:
            self._preparing.cancel()
            self._preparing = None
        for tenure in self.tenures.values():
            tenure.close()
        self.tenures = {}
        self.assigned = False

    async def _assigned(self, _sender: Any, partitions: set[TP], **_: Any) -> None:
        self._generation = self.app.consumer_generation_id
        metrics.REBALANCES.labels(self.name).inc()
        numbers = sorted({tp.partition for tp in partitions})
        self.tenures = {number: PartitionTask(self.name, self._stage.inputs, number, self) for number in numbers}
        self.assigned = True
        log.info("partitions are assigned", stage=self.name, partitions=numbers, generation=self._generation)
        if numbers:
            self._preparing = asyncio.create_task(self._prepare(dict(self.tenures)), name=f"{self.name}-prepare")

    async def _prepare(self, tenures: dict[int, PartitionTask]) -> None:
        try:
            await self.views.wait(self.worker.view_timeout_s)
            recalled: dict[int, int] = {}
            async with self.reader() as reader:
                positions = await self._positions(reader, list(tenures))
                # One after another: who takes over many partitions holds what was said on one of them at a time.
                for number, tenure in tenures.items():
                    recalled[number] = await self._begin(reader, tenure, positions[number])
            log.info("partitions are being fed", stage=self.name, recalled=recalled)
            await asyncio.to_thread(trim)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.fail(error, at={"stage": self.name, "partitions": sorted(tenures), "while": "recalling"})

    async def _begin(self, reader: OutputLogReader, tenure: PartitionTask, positions: dict[str, int]) -> int:
        """Let a stage recall what was said on a partition, and feed it from now on; return how much that was."""
        number = tenure.partition
        memory, said = await self._recall(reader, number, positions)
        stage = self._stage(number, self._settings, self.views.by_name)
        # In a thread: thousands of records are decoded, and the process has other stages.
        await asyncio.to_thread(stage.restore, self._read_back(said))
        tenure.begin(stage, memory, self._suspects(number))
        return len(said)

    def _suspects(self, number: int) -> PoisonTracker:
        # One file a partition: nobody else writes it while the partition is held here.
        path = Path(self.worker.state_dir) / "suspects" / f"{self._group}-{number}.json"
        return PoisonTracker(path, attempts=self.worker.poison_attempts)

    async def _positions(self, reader: OutputLogReader, numbers: Sequence[int]) -> dict[int, dict[str, int]]:
        """Read where to go on, for each partition number."""
        full = {topic.name: self.names.full(topic.name) for topic in self._stage.inputs}
        tps = {TP(name, number) for name in full.values() for number in numbers}
        committed = await self.thread.committed(tps)
        begins = await reader.begins([(tp.topic, tp.partition) for tp in tps])
        # Where nothing was committed, or what was is gone, reading begins with the log.
        return {
            number: {bare: max(committed[TP(name, number)] or 0, begins[name, number]) for bare, name in full.items()}
            for number in numbers
        }

    async def _recall(
        self, reader: OutputLogReader, number: int, positions: dict[str, int]
    ) -> tuple[RestoredState, list[_Output]]:
        """Read what was said of a partition after its positions."""
        outputs = {topic.name: topic for topic in self._stage.outputs}
        aside = [name for topic in self._stage.inputs for name in (topic.dead_letters, topic.late)]
        tails = await reader.read_back({(self.names.full(name), number): positions for name in (*outputs, *aside)})
        memory = RestoredState(positions)
        said: list[_Output] = []
        for (full, _), tail in tails.items():
            name = self.names.bare(full)
            for told in tail:
                for topic, at in told.positions.items():
                    memory.reached[topic] = max(at, memory.reached.get(topic, 0))
                identity = told.headers.get(ID_HEADER)
                if name in outputs and identity is not None:
                    memory.said.add((name, identity))
                    said.append(_Output(outputs[name], number, identity, told))
                elif name not in outputs and told.source is not None:
                    memory.said.add((name, f"{told.source[0]}:{told.source[1]}"))
                    if POISON_HEADER in told.headers:
                        memory.poison.add(told.source)
        return memory, sorted(said, key=lambda one: one.told.timestamp_ms)

    @staticmethod
    def _read_back(outputs: Sequence[_Output]) -> Iterator[PriorOutput]:
        """Decode one after another: a stage keeps little of each, and all of them together are large."""
        for each in outputs:
            told = each.told
            try:
                record = decode(told.value, each.topic.record)
            except SchemaError as error:
                log.error("an output cannot be read back", topic=each.topic.name, partition=each.partition,
                          offset=told.offset, error=str(error))  # fmt: skip
                continue
            sources = dict([told.source]) if told.source else {}
            yield PriorOutput(each.topic.name, told.offset, record, each.identity, sources, told.member_ids)

    # Feeding and publishing

    async def _consume(self, stream: Any) -> None:
        async for event in stream.noack().events():
            try:
                message = event.message
                tenure = self.tenures.get(message.partition)
                if self.stopping or tenure is None or message.generation_id != self._generation:
                    continue  # of an assignment that is over: whoever holds the partition now reads it again
                await tenure.take(self.names.bare(message.topic), event)
            except Exception as error:  # Faust would acknowledge the event and go on
                self.fail(error, at={"stage": self.name, "event": repr(event)})

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, partition: int, headers: Headers
    ) -> Awaitable[Any]:
        """Hand a message to the app's producer."""
        delivery: Awaitable[Any] = await self.app.producer.send(topic, key, value, partition, None, headers)
        return delivery

    async def may_publish(self, tenure: PartitionTask) -> bool:
        """Return whether the tenure's partition is still ours.

        A process that was paused past its session does not know yet that it lost its partitions: the last heartbeat
        that the coordinator accepted tells, so an old one is waited out until there is a new one or a rebalance.
        """
        while not tenure.closed:
            fresh = time.monotonic() - self.thread.last_heartbeat < self.worker.session_timeout_s
            if fresh and not self.app.rebalancing and self.app.consumer_generation_id == self._generation:
                return True
            await asyncio.sleep(0.02)
        return False

    def waiting(self, partition: int, positions: Mapping[str, int]) -> int:
        """Return how many records the log was last known to hold at and after `positions`; where unknown, one."""
        behind = 0
        for topic, offset in positions.items():
            # The consumer's thread may be losing the partition now; then nobody will ask for the answer.
            with contextlib.suppress(AssertionError, AttributeError, KeyError):
                highwater = self.thread.highwater(TP(self.names.full(topic), partition))
                behind += 1 if highwater is None else max(0, highwater - offset)
        return behind

    async def verify_gap(self, topic: str, partition: int, expected: int, found: int) -> None:
        """Raise BrokerError if the log holds messages that the consumer skipped, and nobody has acknowledged them.

        A commit that was under way when the partition changed hands, perhaps from this process to itself, may land
        between the shell's look at the committed offsets and Faust's, which then begins to read further on.
        """
        where = TP(self.names.full(topic), partition)
        async with self.reader() as reader:
            first = await reader.first_after(where.topic, partition, expected)
        if first is None or first >= found:
            return
        committed = (await self.thread.committed({where}))[where]
        if committed is None or committed < found:
            raise BrokerError(
                f"the consumer skipped from offset {expected} to {found} of {topic}/{partition}, "
                f"but offset {first} exists"
            )

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self.worker.tick_ms / 1000)
            open_records = 0
            for tenure in self.tenures.values():
                tenure.tick()
                open_records += tenure.open_records
            metrics.OPEN_RECORDS.labels(self.name).set(open_records)
            metrics.PARTITIONS.labels(self.name).set(len(self.tenures))


def status_of(error: BaseException) -> int:
    """Return the exit status for an error: whether to start again may help, or the same input will raise again."""
    # A full disk and a store that does not answer are OSErrors, and so is a TimeoutError.
    temporary = isinstance(error, BrokerError | KafkaError | FaustError | OSError)
    return EXIT_TEMPFAIL if temporary else EXIT_SOFTWARE
