"""The upstream code that each change to Faust and aiokafka was read against is still that code.

A failure is no bug yet: someone has to read the changed function again. When the change in `streams/runtime/faust/`
still fits, update its "Read against" line and the hash here.
"""

import asyncio
import inspect
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, codec
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import Assignment, Subscription, TopicPartitionState
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator
from aiokafka.record import default_records, legacy_records
from faust import App, Schema
from faust.transport.conductor import ConductorCompiler
from faust.transport.consumer import ConsumerThread
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Producer
from mode import Service

from tamiyo.streams.runtime import faust as changes
from tamiyo.streams.runtime.faust import app, session_renewal
from tamiyo.streams.runtime.faust.decompression_limit import READERS

# By file of streams/runtime/faust/: the upstream functions it relies on, and the hash of their source as it was read.
READ: dict[str, dict[Callable[..., Any], str]] = {
    "app": {
        AIOKafkaConsumerThread._create_worker_consumer: "c2701bfc3e6f6cad",
        Consumer._new_consumer_thread: "0870ec53dea75083",
        Producer._new_producer: "e72355c3430ed02f",
        AIOKafkaProducer._serialize: "eb7723aa42b2a40e",
        AIOKafkaProducer.send_batch: "bf42b0f0c5c0646d",
        BatchBuilder.append: "657d76f55157d9ca",
        MessageAccumulator.add_batch: "5ed1c5b1367ad854",
        App._create_directories: "a9f571c3b04abec3",
        App._new_transport: "42db531312dd776f",
    },
    "range_assignor": {
        AIOKafkaConsumerThread._create_worker_consumer: "c2701bfc3e6f6cad",
        AIOKafkaConsumer.start: "2f1ba70443327538",
        RangePartitionAssignor.assign.__func__: "3d310cce962966e1",
    },
    "fetch_wait": {
        AIOKafkaConsumerThread._create_worker_consumer: "c2701bfc3e6f6cad",
        AIOKafkaConsumer.start: "2f1ba70443327538",
    },
    "heartbeat_time": {
        AIOKafkaConsumerThread.on_start: "38b4e8bd1e10723a",
        ConsumerThread.on_partitions_assigned: "e59e8dda43724bd4",
        GroupCoordinator._heartbeat_routine: "61d01028952239d0",
        GroupCoordinator._do_heartbeat: "dc1d6632aaa68e96",
    },
    "group_failure": {
        GroupCoordinator.check_errors: "ba6ca51ad34838d9",
        GroupCoordinator._push_error_to_user: "743ff515bd7e2e38",
    },
    "seek_to_committed": {
        AIOKafkaConsumerThread.seek_to_committed: "775ab0adc4b052ab",
        Consumer.perform_seek: "0e8c130ff4b0afd8",
        AIOKafkaConsumer.committed: "d8706147ab1573ad",
        AIOKafkaConsumer.seek_to_committed: "f6cd85c8b70a4ccf",
    },
    "stall_check": {
        Consumer.verify_event_path: "a17e8f0610e1abcb",
        AIOKafkaConsumerThread.verify_event_path: "b983e7735f647cb3",
    },
    "prompt_stop": {
        AIOKafkaConsumerThread.on_thread_stop: "8dfc004e258b6c25",
        AIOKafkaConsumer.stop: "bc5da9c98595299a",
        GroupCoordinator.close: "f30d831089456312",
        GroupCoordinator._maybe_leave_group: "016cd88a16e6c4b5",
        GroupCoordinator.need_rejoin: "61ae72b2a3110943",
        Fetcher.close: "1cd24bc1c442149e",
        Fetcher._proc_fetch_request: "59bf948fff47eed5",
    },
    "timestamp_sync": {
        AIOKafkaConsumerThread._fetch_records: "39a2c6c79fc1455a",
        Assignment.state_value: "183fea82ef48f3e6",
        TopicPartitionState.has_valid_position.fget: "ebe7c39d949a1f18",
        TopicPartitionState.position.fget: "816b6b289bd14f5c",
    },
    "batch_handover": {
        Consumer.getmany: "4b168d84882a70d6",
        Consumer._new_offset: "1d2c7ea89a7ad4f1",
        Consumer._filter_tps_with_pending_acks: "f6f9239774234e7e",
        Consumer._add_gap: "4df2573ded7c1c2c",
        Consumer.track_message: "217d7f1399a4cd8e",
        Schema.compile: "d46eec5ce3195b2c",
        Consumer._drain_messages: "44a2500309e83c63",
        Consumer._wait_next_records: "6218e1969a636b3f",
        Consumer.on_buffer_full: "c8961679e0bcdce5",
        ConductorCompiler.build: "837cf521368c1ee4",
        Service.wait_first: "feade6a31f8a6789",
    },
    "metadata_backoff": {
        AIOKafkaClient._metadata_update: "06dc51ed3e0d38b8",
        AIOKafkaClient._md_synchronizer: "e0421bffa9a7735a",
    },
    "session_renewal": {
        session_renewal._send: "5909ea32f4efca49",
        AIOKafkaConnection.close: "28f164aa1e4f0bbc",
        AIOKafkaConnection.connected: "e392e7f6dadb2368",
        AIOKafkaConnection._do_sasl_handshake: "d4f7b5acbbecc07b",
        session_renewal._get_conn: "68ce5d8391719d33",
        AIOKafkaClient.send: "246b277687d7b687",
    },
    "decompression_limit": {
        codec.gzip_decode: "2cb4916134734ad1",
        codec.lz4_decode: "854d856657373077",
        codec.zstd_decode: "366f86f6ee729344",
    },
}
WITHOUT_CHANGES = {"__init__", "clients"}


def source_hash(function: Callable[..., Any]) -> str:
    return sha256(inspect.getsource(function).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", READ)
def test_the_changed_code_is_the_code_that_was_read(name: str) -> None:
    for function, read in READ[name].items():
        found = source_hash(function)
        installed = ", ".join(f"{each} {version(each)}" for each in ("faust-streaming", "aiokafka", "mode-streaming"))
        assert found == read, (
            f"{function.__module__}.{function.__qualname__} has changed ({installed}): read it against "
            f"streams/runtime/faust/{name}.py, then put {found!r} here"
        )


def test_every_change_has_a_contract() -> None:
    files = {each.stem for each in Path(changes.__path__[0]).glob("*.py")}
    assert files - WITHOUT_CHANGES == set(READ)


def test_every_change_names_the_version_it_was_read_against() -> None:
    for name in READ.keys() - {"app"}:
        text = (Path(changes.__path__[0]) / f"{name}.py").read_text()
        assert "\nRead against " in text, name


def test_overridden_methods_still_exist_with_their_parameters() -> None:
    def parameters(function: Callable[..., Any]) -> list[str]:
        return list(inspect.signature(function).parameters)

    thread = AIOKafkaConsumerThread
    assert parameters(thread._fetch_records) == parameters(app.StageConsumerThread._fetch_records)
    assert parameters(Consumer.verify_event_path) == parameters(app.StageConsumer.verify_event_path)
    for name in (
        "on_buffer_full",
        "track_message",
        "getmany",
        "_add_gap",
        "_new_offset",
        "_filter_tps_with_pending_acks",
    ):
        assert parameters(getattr(Consumer, name)) == parameters(getattr(app.StageConsumer, name)), name
    assert parameters(Producer._new_producer) == parameters(app.StageProducer._new_producer)
    assert parameters(thread.on_partitions_assigned) == ["self", "assigned", "generation_id"]
    assert not hasattr(App, "consumer_thread"), "StageApp.consumer_thread would hide it"


def test_private_attributes_that_are_set_or_read_still_exist() -> None:
    async def clients() -> None:
        consumer = AIOKafkaConsumer(bootstrap_servers="127.0.0.1:1", group_id="g")
        producer = AIOKafkaProducer(bootstrap_servers="127.0.0.1:1")
        private = {"_partition_assignment_strategy", "_fetch_max_wait_ms", "_client", "_subscription", "_coordinator"}
        assert private <= set(vars(consumer))
        assert isinstance(producer.client, AIOKafkaClient)
        assert {"subscription"} <= set(dir(consumer._subscription))
        producer._closed = consumer._closed = True
        assert Subscription(set()).assignment is None
        state = TopicPartitionState(Assignment(set()))
        assert state.highwater is None
        assert not state.has_valid_position

    asyncio.run(clients())


@pytest.mark.parametrize(
    ("reader", "decoders"),
    [
        (default_records.DefaultRecordBatch, {"gzip_decode", "lz4_decode", "zstd_decode"}),
        (legacy_records.LegacyRecordBatch, {"gzip_decode", "lz4_decode"}),  # the old format has no zstd
    ],
)
def test_the_decoders_are_found_in_the_modules_where_they_are_replaced(reader: type, decoders: set[str]) -> None:
    assert reader.__module__ in READERS
    assert decoders <= set(vars(sys.modules[reader.__module__]))
