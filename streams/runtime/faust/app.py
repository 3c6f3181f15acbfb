"""The Faust app of one stage: its consumer group, its transport, and nothing of Faust's that loses data.

Faust's consumer is bent in six places, each found by reading 0.15.3 and its aiokafka driver:
- its default assignor spreads the partitions of a stage's several inputs over different workers; aiokafka's range
  assignor gives one worker the same partition number of all of them;
- a partition without a committed offset is not sought back when records were fetched during a rebalance, so they
  would be skipped; here it is sought to its beginning;
- the time of the last heartbeat that succeeded is kept, so that a process that slept past its session can tell;
- its watch for stalled partitions, which can crash in a rebalance, is off;
- of a stage's inputs none is read far ahead of another in time;
- a message that can be handed on at once is handed on without the two tasks that Faust makes for it, and one that
  cannot waits for room instead of for a second.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import KafkaConnectionError, KafkaError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from yarl import URL

from tamiyo.schemas.client.connection import explain
from tamiyo.schemas.errors import BrokerError, ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings
from tamiyo.streams.runtime.faust.decompression_limit import limit
from tamiyo.streams.runtime.faust.metadata_backoff import unhurried
from tamiyo.streams.runtime.faust.timestamp_sync import TimestampSynchronization
from tamiyo.streams.settings import WorkerSettings

METADATA_MAX_AGE_MS = 5_000  # aiokafka's own is five minutes
FAUST = logging.getLogger("faust.stage")  # else these services would chatter under this module's name


class StageConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust's consumer thread, with the changes named above."""

    logger = FAUST
    last_heartbeat: float = 0.0
    """Monotonic time when the group's coordinator last said that this process is a member."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._synchronization = TimestampSynchronization()

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._partition_assignment_strategy = (RangePartitionAssignor,)
        consumer._fetch_max_wait_ms = self.app.fetch_wait_ms
        unhurried(consumer._client)
        return consumer

    async def on_start(self) -> None:
        """Start the consumer and listen in on its heartbeats."""
        await super().on_start()
        coordinator = self._ensure_consumer()._coordinator
        beat = coordinator._do_heartbeat

        async def noted() -> bool:
            alive = bool(await beat())
            if alive:
                self.last_heartbeat = time.monotonic()
            return alive

        coordinator._do_heartbeat = noted

    @property
    def coordination_trouble(self) -> BaseException | None:
        """Why the consumer's membership of its group has ended, or stands still until somebody heeds it; else None.

        aiokafka hands a failure to whoever fetches next. Faust fetches nothing while nothing is assigned, so a refused
        SyncGroup would never be tried again.
        """
        coordinator = self._consumer._coordinator if self._consumer is not None else None
        task = getattr(coordinator, "_coordination_task", None)
        if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
            ended: BaseException = task.exception()
            return ended
        pending: BaseException | None = getattr(coordinator, "_pending_exception", None)
        return pending

    async def heed_coordination(self) -> None:
        """Take the failure that waits to be heeded, whereupon aiokafka tries to join the group again."""
        await self.call_thread(self._heed_coordination)

    async def _heed_coordination(self) -> None:
        with suppress(KafkaError):
            self._ensure_consumer()._coordinator.check_errors()

    async def on_partitions_assigned(self, assigned: Any, generation: int = 0) -> None:
        """Take an assignment as the sign of life it is."""
        self.last_heartbeat = time.monotonic()
        self._synchronization.clear()
        await super().on_partitions_assigned(assigned, generation)

    async def _fetch_records(
        self,
        consumer: AIOKafkaConsumer,
        active_partitions: set[TP],
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> Mapping[TP, Sequence[Any]]:
        """Read from the inputs that are behind; where those give nothing for the time of a fetch, from all."""
        behind = self._synchronization.behind(active_partitions, lambda tp: self._waits(consumer, tp))
        records: Mapping[TP, Sequence[Any]] = await super()._fetch_records(consumer, behind, timeout, max_records)
        if not records and len(behind) < len(active_partitions):
            records = await super()._fetch_records(consumer, active_partitions, 0, max_records)
        self._synchronization.note(records)
        return records

    @staticmethod
    def _waits(consumer: AIOKafkaConsumer, tp: TP) -> bool:
        """Return whether the log is known to hold more of a partition than has been read."""
        subscription = consumer._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        state = assignment.state_value(tp) if assignment is not None else None
        if state is None or state.highwater is None or not state.has_valid_position:
            return False
        return bool(state.position < state.highwater)

    async def committed(self, partitions: set[TP]) -> dict[TP, int | None]:
        """Return the group's committed offset of each partition, None where there is none."""
        found: dict[TP, int | None] = await self.call_thread(self._committed, partitions)
        return found

    async def _committed(self, partitions: set[TP]) -> dict[TP, int | None]:
        consumer = self._ensure_consumer()
        return {tp: await consumer.committed(TopicPartition(tp.topic, tp.partition)) for tp in partitions}

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek every assigned partition to its committed offset, or to its beginning."""
        sought: Mapping[TP, int] = await self.call_thread(self._seek_to_committed)
        return sought

    async def _seek_to_committed(self) -> Mapping[TP, int]:
        consumer = self._ensure_consumer()
        sought: dict[TP, int] = {}
        for partition in consumer.assignment():
            offset = await consumer.committed(partition)
            if offset is None:
                await consumer.seek_to_beginning(partition)
            else:
                consumer.seek(partition, offset)
                sought[TP(partition.topic, partition.partition)] = offset
        return sought


class StageConsumer(driver.Consumer):  # type: ignore[misc]
    """Faust's consumer over `StageConsumerThread`."""

    logger = FAUST

    def _new_consumer_thread(self) -> StageConsumerThread:
        return StageConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Do nothing: the shell watches for stalls.

        Faust's own watch only logs, and ends the app with an AssertionError when it looks in a rebalance's middle.
        """

    def on_buffer_full(self, tp: TP) -> None:
        """Do nothing: a full queue makes the fetching loop wait for room.

        Faust would leave the partition out of the next fetches, and sleep a whole second once all are left out.
        """

    async def wait_first(self, *waiting: Any, **options: Any) -> Any:
        """Wait for the first of several; where that is a message for which there is room, just hand it on.

        Faust's loop over fetched messages awaits (hand the message on, or the flow stops). Outside a rebalance, with
        the producer and the stream's queue not full, handing on does not block, so there is nothing to race.
        """
        if len(waiting) == 2 and not options and self._flows():
            message, suspended = waiting
            suspended.close()
            return await message
        return await super().wait_first(*waiting, **options)

    def _flows(self) -> bool:
        app = self.app
        return (
            self.flow_active
            and app.flow_control.is_active()
            and not app.producer.buffer.pending.qsize()
            and not any(channel.queue.full() for channel in app.topics)
        )


class StageProducer(driver.Producer):  # type: ignore[misc]
    """Faust's producer, with a client that does not hurry."""

    logger = FAUST

    def _new_producer(self, transactional_id: str | None = None) -> Any:
        producer = super()._new_producer(transactional_id)
        unhurried(producer.client)
        return producer


class StageTransport(driver.Transport):  # type: ignore[misc]
    """Faust's aiokafka transport over `StageConsumer` and `StageProducer`."""

    Consumer = StageConsumer
    Producer = StageProducer


class StageApp(faust.App):  # type: ignore[misc]
    """A Faust app without a folder, a web server or tables."""

    logger = FAUST
    fetch_wait_ms: int = 500
    """How long a broker may hold a fetch that finds nothing. The embedded one holds it that long even when
    something comes."""

    def _create_directories(self) -> None:
        # A stage keeps nothing on disk.
        return

    def _new_transport(self) -> StageTransport:
        return StageTransport(self.conf.broker_consumer, self)


def create_app(
    group: str, kafka: KafkaSettings, worker: WorkerSettings, *, fetch_wait_ms: int | None = None
) -> StageApp:
    """Return the app of one stage, in consumer group `group`.

    Raises:
        ConfigurationError: timeouts contradict each other, or a certificate file has gone.
    """
    if worker.heartbeat_interval_s * 3 > worker.session_timeout_s:
        raise ConfigurationError(
            f"TAMIYO_WORKER_HEARTBEAT_INTERVAL_S={worker.heartbeat_interval_s} must be at most a third of "
            f"TAMIYO_WORKER_SESSION_TIMEOUT_S={worker.session_timeout_s}"
        )
    if worker.session_timeout_s > worker.request_timeout_s:
        raise ConfigurationError(
            f"TAMIYO_WORKER_SESSION_TIMEOUT_S={worker.session_timeout_s} must not exceed "
            f"TAMIYO_WORKER_REQUEST_TIMEOUT_S={worker.request_timeout_s}"
        )
    limit()
    app = StageApp(
        group,
        broker=[URL(f"kafka://{server.strip()}") for server in kafka.bootstrap_servers.split(",")],
        broker_credentials=credentials(kafka),
        broker_client_id=group,
        broker_session_timeout=worker.session_timeout_s,
        broker_heartbeat_interval=worker.heartbeat_interval_s,
        broker_request_timeout=worker.request_timeout_s,
        broker_commit_interval=worker.commit_interval_s,
        broker_max_poll_records=worker.max_poll_records,
        consumer_max_fetch_size=worker.max_fetch_bytes,
        # The stage's own loop feeds and commits; what aiokafka would call a slow poll is a full buffer here.
        broker_max_poll_interval=3600.0,
        consumer_auto_offset_reset="earliest",
        # A group whose leader does not know the topics, as after a broker was away, is assigned nothing until it does.
        consumer_metadata_max_age_ms=METADATA_MAX_AGE_MS,
        producer_metadata_max_age_ms=METADATA_MAX_AGE_MS,
        producer_linger=worker.linger_ms / 1000,
        producer_acks=-1,
        producer_request_timeout=worker.delivery_timeout_s,
        producer_max_request_size=worker.max_message_bytes,
        # Events are held until what they close is published: waiting for them in a rebalance would never end.
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        # The shell's own inbox is the buffer.
        stream_buffer_maxsize=worker.max_poll_records,
        topic_disable_leader=True,
        topic_allow_declare=False,
        table_standby_replicas=0,
        web_enabled=False,
        worker_redirect_stdouts=False,
        key_serializer="raw",
        value_serializer="raw",
        logging_config=None,
    )
    app.fetch_wait_ms = worker.fetch_wait_ms if fetch_wait_ms is None else fetch_wait_ms
    return app


def credentials(kafka: KafkaSettings) -> Any:
    """Return Faust's credentials of the settings, or None for a plain connection."""
    context = kafka.ssl_context()
    if kafka.sasl is not None:
        mechanism, username, password = kafka.sasl
        return faust.SASLCredentials(mechanism=mechanism, username=username, password=password, ssl_context=context)
    return faust.SSLCredentials(context=context) if context is not None else None


def aiokafka_settings(kafka: KafkaSettings) -> dict[str, Any]:
    """Return what any aiokafka client needs to connect with the settings."""
    limit()
    config: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in kafka.bootstrap_servers.split(",")],
        "security_protocol": kafka.security_protocol,
        "ssl_context": kafka.ssl_context(),
    }
    if kafka.sasl is not None:
        mechanism, username, password = kafka.sasl
        config.update(sasl_mechanism=mechanism, sasl_plain_username=username, sasl_plain_password=password)
    return config


async def start_reader(reader: AIOKafkaConsumer, kafka: KafkaSettings) -> None:
    """Start an aiokafka consumer; raises BrokerError (BrokerRefused where settings are wrong) that says why not.

    aiokafka itself says only that it was "unable to bootstrap".
    """
    unhurried(reader._client)
    try:
        await reader.start()
    except KafkaConnectionError as error:
        await reader.stop()
        raise await asyncio.to_thread(explain, kafka) or BrokerError(f"{kafka.bootstrap_servers}: {error}") from error
