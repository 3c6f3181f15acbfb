"""The Faust app of one stage: its consumer group, its transport, and the changes to Faust that keep records safe.

Each change to Faust or aiokafka is a file of this folder, which names the version it was read against.
`tests/streams/runtime/faust/test_contracts.py` fails when the changed code is no longer the code that was read.
"""

import logging
from collections.abc import Awaitable, Sequence
from typing import Any

import faust
from faust.transport.drivers import aiokafka as driver
from yarl import URL

from tamiyo.schemas.kafka import KafkaSettings
from tamiyo.streams.headers import KeyValueHeaders
from tamiyo.streams.process import steady_clock
from tamiyo.streams.runtime.faust.batch_handover import BatchHandover
from tamiyo.streams.runtime.faust.clients import faust_credentials
from tamiyo.streams.runtime.faust.decompression_limit import limit_decompression
from tamiyo.streams.runtime.faust.fetch_wait import set_fetch_wait
from tamiyo.streams.runtime.faust.group_failure import GroupFailure
from tamiyo.streams.runtime.faust.heartbeat_time import HeartbeatTime
from tamiyo.streams.runtime.faust.metadata_backoff import back_off_metadata
from tamiyo.streams.runtime.faust.prompt_stop import PromptStop
from tamiyo.streams.runtime.faust.range_assignor import use_range_assignor
from tamiyo.streams.runtime.faust.seek_to_committed import SeekToCommitted
from tamiyo.streams.runtime.faust.session_renewal import renew_sessions
from tamiyo.streams.runtime.faust.stall_check import NoStallCheck
from tamiyo.streams.runtime.faust.timestamp_sync import TimestampSynchronized
from tamiyo.streams.settings import WorkerSettings

METADATA_MAX_AGE_MS = 5_000  # aiokafka's own is five minutes
FETCHES_QUEUED = 4  # of one partition: enough that the next is there when the buffer has room, few enough for memory
BATCH_BYTES = 256 * 1024  # of records published in one piece; the topics take 5 MiB, and a broker by default 1 MiB
FAUST = logging.getLogger("faust.stage")  # Faust logs under a class's module otherwise


class StageConsumerThread(
    HeartbeatTime,
    TimestampSynchronized,
    SeekToCommitted,
    GroupFailure,
    PromptStop,
    driver.AIOKafkaConsumerThread,  # type: ignore[misc]
):
    """Faust's consumer thread with the changes of this folder."""

    logger = FAUST

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        use_range_assignor(consumer)
        set_fetch_wait(consumer, self.app.fetch_wait_ms)
        back_off_metadata(consumer._client)
        return consumer


class StageConsumer(BatchHandover, NoStallCheck, driver.Consumer):  # type: ignore[misc]
    """Faust's consumer over `StageConsumerThread`."""

    logger = FAUST

    def _new_consumer_thread(self) -> StageConsumerThread:
        return StageConsumerThread(self, loop=self.loop, beacon=self.beacon)


class StageProducer(driver.Producer):  # type: ignore[misc]
    """Faust's producer, whose client waits between metadata updates, and which sends whole batches."""

    logger = FAUST

    async def send_records(
        self, topic: str, partition: int, records: Sequence[KeyValueHeaders]
    ) -> list[tuple[Awaitable[Any], int]]:
        """Send records (key, value, headers) of one partition, in order.

        Returns:
            For each batch they were sent in, what is done once it is delivered, and how many of the records it has.
        """
        producer = self._ensure_producer()
        sent: list[tuple[Awaitable[Any], int]] = []
        now_ms = (
            steady_clock.time_ms()
        )  # by default aiokafka stamps a record by the wall clock, which jumps when it is set
        batch = producer.create_batch()
        for key, value, headers in records:
            if batch.append(timestamp=now_ms, key=key, value=value, headers=headers) is None:
                sent.append((await producer.send_batch(batch, topic, partition=partition), batch.record_count()))
                batch = producer.create_batch()
                batch.append(timestamp=now_ms, key=key, value=value, headers=headers)
        sent.append((await producer.send_batch(batch, topic, partition=partition), batch.record_count()))
        return sent

    @property
    def largest(self) -> int:
        """The bytes that a record may have: the setting of the producer."""
        limit: int = self.app.conf.producer_max_request_size
        return limit

    def _new_producer(self, transactional_id: str | None = None) -> Any:
        producer = super()._new_producer(transactional_id)
        back_off_metadata(producer.client)
        return producer


class StageTransport(driver.Transport):  # type: ignore[misc]
    """Faust's aiokafka transport over `StageConsumer` and `StageProducer`."""

    Consumer = StageConsumer
    Producer = StageProducer


class StageApp(faust.App):  # type: ignore[misc]
    """A Faust app without a folder, a web server or tables."""

    logger = FAUST
    fetch_wait_ms: int = 500
    """How long a broker may hold a fetch that finds nothing."""

    @property
    def consumer_thread(self) -> StageConsumerThread:
        """The thread in which the consumer runs."""
        thread: StageConsumerThread = self.consumer._thread
        return thread

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
        ConfigurationError: a certificate file has gone.
    """
    limit_decompression()
    renew_sessions()
    app = StageApp(
        group,
        broker=[URL(f"kafka://{server.strip()}") for server in kafka.bootstrap_servers.split(",")],
        broker_credentials=faust_credentials(kafka),
        broker_client_id=group,
        broker_session_timeout=worker.session_timeout_s,
        broker_heartbeat_interval=worker.heartbeat_interval_s,
        broker_request_timeout=worker.request_timeout_s,
        broker_commit_interval=worker.commit_interval_s,
        broker_max_poll_records=worker.max_poll_records,
        consumer_max_fetch_size=worker.max_fetch_bytes,
        # The partition task feeds and acknowledges; what aiokafka would call a slow poll is a full buffer here.
        broker_max_poll_interval=3600.0,
        consumer_auto_offset_reset="earliest",
        # A group whose leader has no metadata of the topics, as after an outage, is assigned nothing until it has.
        consumer_metadata_max_age_ms=METADATA_MAX_AGE_MS,
        producer_metadata_max_age_ms=METADATA_MAX_AGE_MS,
        producer_linger=worker.linger_ms / 1000,
        producer_acks=-1,
        producer_request_timeout=worker.delivery_timeout_s,
        producer_max_request_size=worker.max_message_bytes,
        producer_max_batch_size=BATCH_BYTES,
        # Events are held until the outputs they close are published: a rebalance would wait for them for ever.
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        # The partition task's input buffer is the buffer; an event has all records that a fetch brought of a partition.
        stream_buffer_maxsize=FETCHES_QUEUED,
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
