"""Views of compacted topics, read completely and kept current: the newest record under each key."""

import asyncio
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from tamiyo.schemas.client.compacted import Copy, NewestByKey, key_text
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import BrokerError, BrokerRefused, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import Topic
from tamiyo.streams.runtime import metrics
from tamiyo.streams.runtime.faust.clients import aiokafka_settings, start_reader

log = structlog.get_logger(__name__)

R = TypeVar("R", bound=Record)

MAX_UNPACKED = 1_000  # records; a topology of ten layers takes 44 kB unpacked, and 0.5 kB packed
METADATA_MAX_AGE_MS = 5_000  # how soon added partitions are noticed; aiokafka's own is five minutes
UNPACKED_S = 600.0  # after this time without a `get`, a record is kept only in packed form


class TopicView(Generic[R]):
    """The newest record under each key of one compacted topic. A message without a value removes its key.

    Keys are runs, and over months far more runs are over than go on: so the view keeps the packed bytes of each, and
    decoded records only of those that were read lately.
    """

    def __init__(self, topic: Topic, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.topic = topic
        self._clock = clock
        self._packed: NewestByKey[str, bytes] = NewestByKey(clock=clock)
        self._unpacked: OrderedDict[str, tuple[R, float]] = OrderedDict()
        """With the time of the last `get`, the longest ago first."""
        self._lock = threading.Lock()
        """Stages that compute in threads read while the reader task writes."""

    def get(self, key: str) -> R | None:
        """Return the newest record under `key`, or None."""
        with self._lock:
            packed = self._packed.get(key)
            if packed is None:
                return None
            now = self._clock()
            held = self._unpacked.pop(key, None)
            record = held[0] if held is not None else self._unpack(packed)
            self._unpacked[key] = (record, now)
            while len(self._unpacked) > MAX_UNPACKED or now - next(iter(self._unpacked.values()))[1] > UNPACKED_S:
                self._unpacked.popitem(last=False)
            return record

    def items(self) -> Iterable[tuple[str, R]]:
        """Return all keys with their newest record."""
        with self._lock:
            packed = dict(self._packed.items())
        return ((key, self._unpack(each)) for key, each in packed.items())

    def __len__(self) -> int:
        return len(self._packed)

    def apply(self, key: bytes | None, value: bytes | None, *, partition: int = 0, timestamp_ms: int = 0) -> None:
        """Apply the next message of a partition; raises SchemaError when it is not a record of the topic."""
        name = key_text(key)
        # So a broken record fails here, not in a stage.
        record = decode(value, self.topic.record) if value is not None else None
        packed = zlib.compress(value, 1) if value is not None else None
        with self._lock:
            if self._packed.take(name, Copy(partition, timestamp_ms, packed, getattr(record, "version", 0))):
                self._unpacked.pop(name, None)

    def forget_removed(self) -> None:
        """Forget keys that were removed a while ago; call it once all partitions are read."""
        with self._lock:
            self._packed.forget_removed()

    def _unpack(self, packed: bytes) -> R:
        return cast(R, decode(zlib.decompress(packed), self.topic.record))


class Views:
    """The views of a process: one reader without a group, over every partition of every topic.

    All partitions, since the keys of some topics are not runs (a policy's name, * for all). Partitions that are added
    are read within seconds.
    """

    def __init__(self, topics: Sequence[Topic], kafka: KafkaSettings, names: TopicNames, *, fetch_wait_ms: int) -> None:
        self.by_name: dict[str, TopicView[Any]] = {topic.name: TopicView(topic) for topic in topics}
        self._names = names
        for name in self.by_name:
            metrics.REJECTED.labels("view", name, "undecodable")  # begins at 0, for Prometheus
        self._kafka = kafka
        self._fetch_wait_ms = fetch_wait_ms
        self._caught_up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failed: BaseException | None = None

    @property
    def caught_up(self) -> bool:
        """Whether everything that existed at the start has been read."""
        return self._caught_up.is_set()

    @property
    def ended(self) -> BaseException | None:
        """Return what ended the reader; None while it reads.

        Without this check topologies, policies and orders would stay stale unnoticed.
        """
        if self._task is None or not self._task.done():
            return None
        if self._task.cancelled():
            return BrokerError("the reader of compacted topics was cancelled from within")
        return self._task.exception() or BrokerError("the reader of compacted topics has ended")

    async def start(self) -> None:
        """Begin to read."""
        if not self.by_name:
            self._caught_up.set()
            return
        self._task = asyncio.create_task(self._read(), name="views")

    async def wait(self, timeout_s: float) -> None:
        """Return once everything that existed at the start is read.

        Raises BrokerError after `timeout_s`, or at once if the broker refuses the client.
        """
        reading = asyncio.create_task(self._caught_up.wait())
        ends = {reading} if self._task is None else {reading, self._task}
        await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        reading.cancel()
        if self.caught_up:
            return
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()
        raise BrokerError(
            f"expected to read the compacted topics ({', '.join(self.by_name)}) within {timeout_s:.0f} s, and did not"
        ) from self._failed

    async def stop(self) -> None:
        """Stop reading; the views stay as they are."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _read(self) -> None:
        positions: dict[TopicPartition, int] = {}
        while True:
            consumer = AIOKafkaConsumer(
                **aiokafka_settings(self._kafka),
                group_id=None,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                fetch_max_wait_ms=self._fetch_wait_ms,
                metadata_max_age_ms=METADATA_MAX_AGE_MS,
            )
            try:
                await start_reader(consumer, self._kafka)
                await self._follow(consumer, positions)
            except (KafkaError, BrokerError) as error:
                if isinstance(error, BrokerRefused) and not self.caught_up:
                    raise
                # An outage of the broker or registry passes; what was read stays valid meanwhile.
                self._failed = error
                log.warning("reader of compacted topics restarts", error=repr(error))
                await asyncio.sleep(1.0)
            finally:
                # aiokafka raises CancelledError when it cancels a task that has not had its first turn.
                await asyncio.sleep(0)
                await consumer.stop()

    async def _follow(self, consumer: Any, positions: dict[TopicPartition, int]) -> None:
        assigned = set(await self._partitions(consumer))
        self._assign(consumer, assigned, positions)
        ends: dict[TopicPartition, int] = await consumer.end_offsets(assigned)
        behind = {partition for partition, end in ends.items() if end > 0}
        while True:
            if not self.caught_up:
                # Positions pass gaps that compaction left; the position of an emptied partition is at its end at once.
                behind = {each for each in behind if await consumer.position(each) < ends[each]}
                if not behind:
                    log.info("compacted topics read", **{name: len(view) for name, view in self.by_name.items()})
                    self._caught_up.set()
            if added := [each for each in self._known(consumer) if each not in assigned]:
                log.info("partitions added to compacted topics", partitions=len(added))
                assigned.update(added)
                self._assign(consumer, assigned, positions)
            batches = await consumer.getmany(timeout_ms=1000 if self.caught_up else 100)
            for partition, messages in batches.items():
                name = self._names.bare(partition.topic)
                view = self.by_name[name]
                for message in messages:
                    try:
                        view.apply(
                            message.key,
                            message.value,
                            partition=partition.partition,
                            timestamp_ms=message.timestamp or 0,
                        )
                    except SchemaError as error:
                        log.error(
                            "undecodable message of a compacted topic ignored",
                            topic=name, partition=partition.partition, offset=message.offset, error=str(error),
                        )  # fmt: skip
                        metrics.REJECTED.labels("view", name, "undecodable").inc()
                    positions[partition] = message.offset + 1
                metrics.VIEW_KEYS.labels(name).set(len(view))
            if self.caught_up:
                for view in self.by_name.values():
                    view.forget_removed()

    def _assign(
        self, consumer: Any, partitions: Iterable[TopicPartition], positions: Mapping[TopicPartition, int]
    ) -> None:
        """Read these partitions, each from where it was read to, or from its beginning."""
        consumer.assign(list(partitions))
        for partition in positions.keys() & set(partitions):
            consumer.seek(partition, positions[partition])

    def _known(self, consumer: Any) -> list[TopicPartition]:
        """Return the partitions in the client's metadata."""
        names = [self._names.full(name) for name in self.by_name]
        return [
            TopicPartition(name, number)
            for name in names
            for number in sorted(consumer.partitions_for_topic(name) or ())
        ]

    async def _partitions(self, consumer: Any) -> list[TopicPartition]:
        deadline = time.monotonic() + 30
        for name in self.by_name:
            full = self._names.full(name)
            await consumer._client.add_topic(full)
            while not consumer.partitions_for_topic(full):
                if time.monotonic() > deadline:
                    raise BrokerError(f"topic {full} does not exist; create it with `tamiyo topics create`")
                await asyncio.sleep(0.1)
                await consumer._client.force_metadata_update()
        return self._known(consumer)
