"""The catalogue in a real registry, and confluent-kafka's serialisers as foreign clients."""

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from datetime import time as dt_time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from tamiyo.schemas.adaptation import ControlCommand
from tamiyo.schemas.avro_schema import FOLDER, avro_schema
from tamiyo.schemas.client.registry import Registry, RegistrySettings
from tamiyo.schemas.client.subjects import subject
from tamiyo.schemas.codec import decode, use_registry
from tamiyo.schemas.errors import RegistryError
from tamiyo.schemas.kafka import PRODUCER, KafkaSettings, TopicNames
from tamiyo.schemas.telemetry import KernelPerformance, ModelPerformance
from tamiyo.schemas.topics import CATALOGUE, CONTROL, KERNEL_PERFORMANCE, MODEL_PERFORMANCE, REWARDS, SIGNALS
from tamiyo.streams.admin import doctor
from tamiyo.streams.admin import schema_registry as registry
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.runtime.views import Views
from tests.streams.cli.test_cli import run
from tests.support.kafka_log import KafkaLog
from tests.support.registry_server import RegistryServer

PERFORMANCE = ModelPerformance(run_id="run", step=10, time_ms=1_000, train_loss=0.5, validation_loss=0.75)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    use_registry(None)


@pytest.fixture
def settings(registry_url: str) -> RegistrySettings:
    return RegistrySettings(url=registry_url)


@pytest.fixture
def registered(settings: RegistrySettings, names: TopicNames) -> dict[str, int]:
    return dict(registry.register(Registry(settings), names))


@pytest.fixture
def foreign(settings: RegistrySettings, registered: dict[str, int]) -> Iterator[SchemaRegistryClient]:
    """confluent-kafka's own client of a registry that holds the catalogue."""
    with SchemaRegistryClient({"url": settings.url}) as client:
        yield client


def test_registers_the_catalogue_once(
    settings: RegistrySettings, names: TopicNames, registered: dict[str, int]
) -> None:
    client = Registry(settings)
    assert list(registered) == [f"{names.full(topic.name)}-value" for topic in CATALOGUE]
    assert dict(registry.register(client, names)) == registered
    for topic in CATALOGUE:
        name = subject(topic.record, names)
        assert client.version_numbers(name) == [1]
        assert client.compatibility(name) == "BACKWARD_TRANSITIVE"
        assert json.loads(client.schema(registered[name]) or "") == avro_schema(topic.record)
    assert list(registry.problems(client, names)) == []


def test_an_incompatible_schema_is_refused_and_reported(
    settings: RegistrySettings,
    names: TopicNames,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The subject held another schema before: one of a field that ours gives no default for is missing in it.
    client, name = Registry(settings), subject(REWARDS.record, names)
    earlier = avro_schema(REWARDS.record)
    earlier["fields"] = [field for field in earlier["fields"] if field["name"] != "decision_id"]
    client.register(name, json.dumps(earlier))
    assert f"{name}: our RewardAnalysis cannot read what an earlier version wrote" in set(_settled(client, names))
    monkeypatch.setenv("TAMIYO_REGISTRY_URL", str(settings.url))
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", names.prefix)
    assert run(monkeypatch, "schemas", "register") == 1
    printed = " ".join(capsys.readouterr().err.split())
    assert "409" in printed
    assert f"{name}/versions" in printed
    assert client.version_numbers(name) == [1]


def _settled(client: Registry, names: TopicNames) -> list[str]:
    client.set_compatibility(subject(REWARDS.record, names), "BACKWARD_TRANSITIVE")
    return list(registry.problems(client, names))


def test_doctor_and_check_report_missing_schemas(
    registry_url: str,
    names: TopicNames,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TAMIYO_REGISTRY_URL", registry_url)
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", names.prefix)

    def findings(settings: RegistrySettings) -> list[tuple[str, str]]:
        return [(each.state, each.detail) for each in doctor._registry(settings, names)]

    before = findings(RegistrySettings())
    assert ("problem", f"{names.prefix}tamiyo.rewards-value: RewardAnalysis is not registered") in before
    assert len(before) == len(CATALOGUE)
    assert run(monkeypatch, "schemas", "check") == 1
    assert run(monkeypatch, "schemas", "register") == 0
    assert run(monkeypatch, "schemas", "check") == 0
    assert f"{names.prefix}tamiyo.rewards-value: schema " in capsys.readouterr().out
    assert [state for state, _ in findings(RegistrySettings())] == ["ok"]
    Registry(RegistrySettings()).set_compatibility(subject(REWARDS.record, names), "NONE")
    assert findings(RegistrySettings())[0][1].endswith("is NONE, but BACKWARD_TRANSITIVE is expected")
    ((state, detail),) = findings(RegistrySettings(url="http://127.0.0.1:1"))
    assert (state, "127.0.0.1:1" in detail) == ("problem", True)


def test_a_foreign_client_in_both_directions(
    kafka: KafkaSettings,
    names: TopicNames,
    kafka_log: KafkaLog,
    settings: RegistrySettings,
    foreign: SchemaRegistryClient,
) -> None:
    full = names.full(MODEL_PERFORMANCE.name)
    context = SerializationContext(full, MessageField.VALUE)
    registry.prepare(names, settings)
    Topics(kafka, names).touch()

    # Theirs, with our file, with a schema of theirs that knows a field less, and ours.
    text = (FOLDER / "ModelPerformance.avsc").read_text()
    lesser = json.loads(text)
    lesser["fields"] = [field for field in lesser["fields"] if field["name"] != "throughput"]
    values = PERFORMANCE.model_dump()
    kafka_log.publish_bytes(
        MODEL_PERFORMANCE,
        [
            (b"run", AvroSerializer(foreign, schema, conf={"auto.register.schemas": register})(values, context))
            for schema, register in ((json.dumps(json.loads(text)), False), (json.dumps(lesser), True))
        ],
    )
    kafka_log.publish(MODEL_PERFORMANCE, [PERFORMANCE])
    published = kafka_log.read(MODEL_PERFORMANCE.name)
    assert [each.record(ModelPerformance) for each in published] == [PERFORMANCE] * 3
    assert len({(each.value or b"")[:5] for each in published}) == 2

    deserialize = AvroDeserializer(foreign, text)
    assert [deserialize(each.value, context) for each in published] == [values] * 3


def test_a_foreign_client_with_logical_types(
    names: TopicNames, settings: RegistrySettings, foreign: SchemaRegistryClient
) -> None:
    context = SerializationContext(names.full(MODEL_PERFORMANCE.name), MessageField.VALUE)
    registry.prepare(names, settings)
    theirs = avro_schema(ModelPerformance)
    changed = {"time_ms": ("long", "timestamp-millis"), "run_id": ("string", "uuid"), "step": ("long", "time-micros")}
    for field in theirs["fields"]:
        if field["name"] in changed:
            base, logical = changed[field["name"]]
            field["type"] = {"type": base, "logicalType": logical}
    when = datetime.fromtimestamp(1.25, UTC)
    values = {**PERFORMANCE.model_dump(), "run_id": uuid.UUID(int=7), "time_ms": when, "step": dt_time(0, 0, 0, 10)}
    data = AvroSerializer(foreign, json.dumps(theirs))(values, context)
    expected = PERFORMANCE.model_copy(update={"run_id": str(uuid.UUID(int=7)), "time_ms": 1_250})
    assert decode(data, ModelPerformance) == expected


@pytest.mark.flow
def test_a_stage_between_foreign_clients(
    kafka: KafkaSettings, names: TopicNames, settings: RegistrySettings, foreign: SchemaRegistryClient, tmp_path: Path
) -> None:
    Topics(kafka, names).touch()
    environment = {
        **os.environ,
        "TAMIYO_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "TAMIYO_TOPIC_PREFIX": names.prefix,
        "TAMIYO_REGISTRY_URL": str(settings.url),
    }
    serialize = AvroSerializer(
        foreign, json.dumps(avro_schema(KernelPerformance)), conf={"auto.register.schemas": False}
    )
    frame = KernelPerformance(run_id="run", step=1, time_ms=_now(), layer_id=["a"], execution_latency_ms=[0.25])
    full = names.full(KERNEL_PERFORMANCE.name)
    data = serialize(frame.model_dump(), SerializationContext(full, MessageField.VALUE))
    producer = Producer(kafka.librdkafka(**PRODUCER))
    producer.produce(full, data, b"run")
    producer.produce(full, b"\0\0\0\xff\xff" + (data or b"")[5:], b"run")  # with an unregistered id
    assert producer.flush(20) == 0
    command = [sys.executable, "-m", "tamiyo.streams.cli", "worker", "--no-supervise", "--stage", "intake"]
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        signal = _first(kafka, names.full(SIGNALS.name))
        rejected = _first(kafka, names.full(KERNEL_PERFORMANCE.dead_letters))
    finally:
        worker.terminate()
        worker.wait(30)
    context = SerializationContext(names.full(SIGNALS.name), MessageField.VALUE)
    assert AvroDeserializer(foreign)(signal.value(), context)["layer_id"] == ["a"]
    assert rejected.value()[:5] == b"\0\0\0\xff\xff"
    assert b"schema 65535 is not in the registry" in dict(rejected.headers())["tamiyo-reason"]


def _now() -> int:
    return time.time_ns() // 1_000_000


def _first(kafka: KafkaSettings, topic: str) -> Any:
    """Wait for a topic's first message."""
    consumer = Consumer(
        kafka.librdkafka(**{"group.id": topic, "auto.offset.reset": "earliest", "fetch.wait.max.ms": 10})
    )
    try:
        consumer.subscribe([topic])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            message = consumer.poll(0.5)
            if message is not None and message.error() is None:
                return message
        raise AssertionError(f"nothing came on {topic}")
    finally:
        consumer.close()


def test_a_start_waits_for_an_unreachable_registry(names: TopicNames, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "RETRY_S", 0.1)
    with RegistryServer() as server:
        port, patient = server.server_port, RegistrySettings(url=server.url, startup_timeout_s=30)
        brief = RegistrySettings(url=server.url, startup_timeout_s=0.3)
    with pytest.raises(RegistryError, match="gives no valid response") as away:
        registry.prepare(names, brief)
    assert away.value.temporary
    with RegistryServer(port) as server:
        # It responds, but lacks the schemas: waiting would not help.
        server.requests.clear()
        with pytest.raises(RegistryError, match="tamiyo schemas register") as missing:
            registry.prepare(names, patient)
        assert not missing.value.temporary
        assert len(server.requests) == 1
        for topic in CATALOGUE:
            server.add(subject(topic.record, names), json.dumps(avro_schema(topic.record)))
        server.failure = (503, b"starting")
        server.recover_after(1)
        registry.prepare(names, patient)
        assert server.failure is None


def test_views_wait_for_an_unreachable_registry(kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog) -> None:
    order = ControlCommand(run_id="run", time_ms=1, paused=True)

    async def read(server: RegistryServer) -> Any:
        views = Views([CONTROL], kafka, names, fetch_wait_ms=10)
        await views.start()
        try:
            assert await asyncio.to_thread(server.requested.wait, 30)
            assert not views.caught_up
            server.failure = None
            await views.wait(30)
        finally:
            await views.stop()
        return views.by_name[CONTROL.name].get("run")

    Topics(kafka, names).touch()
    with RegistryServer() as server:
        settings = RegistrySettings(url=server.url)
        server.add(subject(CONTROL.record, names), json.dumps(avro_schema(CONTROL.record)))
        registry.connect(names, settings)
        kafka_log.publish(CONTROL, [order])
        registry.connect(names, settings)  # a process that has seen no schema yet
        server.requested.clear()
        server.failure = (503, b"down")
        assert asyncio.run(read(server)) == order


def test_a_worker_without_its_registry_exits_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAMIYO_REGISTRY_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("TAMIYO_REGISTRY_STARTUP_TIMEOUT_S", "0.2")
    assert run(monkeypatch, "worker", "--no-supervise", "--stage", "intake") == 1
    assert "tamiyo: the schema registry at http://127.0.0.1:1 gives no valid response" in capsys.readouterr().err
