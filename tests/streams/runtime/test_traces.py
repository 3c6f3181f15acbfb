"""Traces through a partition task: headers and spans on the way, and nothing else changed."""

import asyncio
import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tamiyo.host._client.publisher import KafkaPublisher
from tamiyo.schemas.client.tracing import Traces
from tamiyo.schemas.codec import encode
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.runtime import partition_task
from tamiyo.streams.settings import WorkerSettings
from tests.streams.runtime.harness import FakeKafka, Sent, TaskHarness, record_at, settle
from tests.support.kafka_log import KafkaLog
from tests.support.pairs import NUMBERS, SUMS, number
from tests.support.workers import TOPICS, Process, enough

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def feed(monkeypatch: pytest.MonkeyPatch, traces: Traces | None, **settings: Any) -> list[Sent]:
    """Return what a pair stage publishes of two numbers, the second in a trace, and a record that it rejects."""
    monkeypatch.setattr(partition_task, "traces", lambda: traces)

    async def scene() -> list[Sent]:
        kafka = FakeKafka(WorkerSettings(max_batch=100, **settings))
        harness = TaskHarness(kafka)
        records = [record_at(each, encode(number("run", each, 4 + each))) for each in range(2)]
        records[1].headers = [("traceparent", PARENT.encode()), ("other", None)]
        await harness.task.take(NUMBERS.name, [*records, record_at(2, b"not avro")])
        await settle()
        harness.task.close()
        return kafka.sent

    return asyncio.run(scene())


def recorder() -> tuple[Traces, Callable[[], tuple[ReadableSpan, ...]]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Traces(provider), exporter.get_finished_spans


def test_an_output_has_a_header_more_and_no_other_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    traces, spans = recorder()
    plain = feed(monkeypatch, None)
    traced = feed(monkeypatch, traces)
    assert [each.value for each in traced] == [each.value for each in plain]
    sums = [each for each in traced if each.topic == SUMS.name]
    (span,) = spans()
    parent = sums[0].headers.pop("traceparent")
    assert parent.split("-")[1:3] == [f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"]
    for each in (*plain, *traced):
        each.headers.pop("tamiyo-time", None)
    assert [each.headers for each in traced] == [each.headers for each in plain]
    assert span.name == "tamiyo.pairs"
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" in PARENT


def test_a_replay_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    traces, spans = recorder()
    assert any(each.topic == SUMS.name for each in feed(monkeypatch, traces, replay=True))
    assert spans() == ()


@pytest.mark.flow
def test_a_worker_goes_on_with_the_hosts_trace(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, start: Callable[..., Process]
) -> None:
    Topics(kafka, names, TOPICS).touch()
    traces, spans = recorder()
    publisher = KafkaPublisher("run-0", kafka, names, capacity=10, traces=traces)
    try:
        for step in range(2):
            publisher.publish(NUMBERS, lambda step=step: number("run-0", step, 1))  # type: ignore[misc]
        assert publisher.flush(10)
    finally:
        publisher.close(1)
    worker = start(kafka, OTEL_TRACES_EXPORTER="console", OTEL_BSP_SCHEDULE_DELAY="50")
    (found,) = kafka_log.wait_for(SUMS.name, enough(1))
    assert worker.end(signal.SIGTERM) == 0, worker.log.read_text()
    closing = spans()[1].context
    assert found.headers["traceparent"].split("-")[1] == f"{closing.trace_id:032x}"
    text = worker.log.read_text()
    begin = text.index('{\n    "name": "tamiyo.pairs"')
    printed, _ = json.JSONDecoder().raw_decode(text[begin:])
    assert printed["parent_id"] == f"0x{closing.span_id:016x}"
    assert printed["context"]["span_id"].removeprefix("0x") == found.headers["traceparent"].split("-")[2]


def test_a_worker_without_the_exporter_does_not_start(kafka: KafkaSettings, start: Callable[..., Process]) -> None:
    worker = start(kafka, OTEL_TRACES_EXPORTER="zipkin")
    deadline = time.monotonic() + 60
    assert worker.process.wait(deadline - time.monotonic()) != 0
    assert "OTEL_TRACES_EXPORTER=zipkin: no exporter zipkin is installed" in worker.log.read_text()
