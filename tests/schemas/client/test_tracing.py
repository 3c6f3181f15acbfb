"""Spans and their contexts in headers; and no trace of OpenTelemetry where nobody asks for it."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from tamiyo.schemas.client import tracing
from tamiyo.schemas.client.tracing import Traces


class Recorded:
    """Traces, and the spans that they have recorded."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.traces = Traces(self.provider)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def continues(span: ReadableSpan, earlier: ReadableSpan) -> bool:
    """Return whether a span is a child of an earlier one, in the same trace."""
    place = span.parent
    return place is not None and (place.trace_id, place.span_id) == (earlier.context.trace_id, earlier.context.span_id)


def record(step: int = 1, **fields: object) -> Any:
    return SimpleNamespace(run_id="run", step=step, **fields)


def test_all_records_of_a_step_belong_to_one_frame(recorded: Recorded) -> None:
    first, second, third = (recorded.traces.from_host("telemetry", record(step)) for step in (1, 1, 2))
    assert first == second != third
    assert [name for name, _ in first] == ["traceparent"]
    assert [span.attributes for span in recorded.spans] == [
        {
            "messaging.system": "kafka",
            "messaging.destination.name": "telemetry",
            "tamiyo.run_id": "run",
            "tamiyo.step": step,
        }
        for step in (1, 2)
    ]
    assert recorded.traces.from_host("topology", SimpleNamespace(run_id="run")) == []
    assert len(recorded.spans) == 2


def test_an_output_goes_on_with_what_closed_it(recorded: Recorded) -> None:
    frame = recorded.traces.from_host("telemetry", record())
    started = time.perf_counter() - 5
    headers = recorded.traces.published("tamiyo.intake", "signals", record(), [*frame, ("other", None)], started)
    root, child = recorded.spans
    assert continues(child, root)
    assert headers != frame
    assert 5e9 <= child.end_time - child.start_time < 60e9
    assert child.links == ()


def test_what_has_no_trace_begins_one(recorded: Recorded) -> None:
    with recorded.provider.get_tracer("user").start_as_current_span("training"):
        recorded.traces.published("tamiyo.windows", "windows", record())
        recorded.traces.published("tamiyo.windows", "windows", record(), [("traceparent", b"\xff")])
    assert [span.parent for span in recorded.spans if span.name == "tamiyo.windows"] == [None, None]


def test_a_record_about_a_decision_goes_on_with_that_decision(recorded: Recorded) -> None:
    decision = recorded.traces.published("tamiyo.decisions", "decisions", record(decision_id="d"))
    recorded.traces.received(record(decision_id="d"), decision)
    outcome = recorded.traces.from_host("outcomes", record(decision_id="d", duration_ms=2000.0))
    recorded.traces.received(record(decision_id="d"), outcome)
    window = recorded.traces.from_host("telemetry", record(9))
    recorded.traces.published("tamiyo.rewards", "rewards", record(decision_id="d"), window)
    decided, executed, frame, reward = recorded.spans
    assert continues(executed, decided)
    assert 2e9 <= executed.end_time - executed.start_time < 60e9
    assert continues(reward, executed)  # the newest about the decision
    assert [link.context.span_id for link in reward.links] == [frame.context.span_id]


def test_only_so_many_decisions_are_remembered(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MOST_DECISIONS", 2)
    for name in "abac":  # a is newer than b
        headers = recorded.traces.published("decided", "decisions", record(decision_id=None))
        recorded.traces.received(record(decision_id=name), headers)
    for name in "abc":
        recorded.traces.published("rewarded", "rewards", record(decision_id=name))
    assert [span.parent is not None for span in recorded.spans if span.name == "rewarded"] == [True, False, True]


def test_a_frame_that_is_not_sampled_is_not_recorded_downstream() -> None:
    recorded = Recorded(sampler=ParentBased(ALWAYS_OFF))
    frame = recorded.traces.from_host("telemetry", record())
    signals = recorded.traces.published("tamiyo.intake", "signals", record(), frame)
    for ((_, parent),) in (frame, signals):
        assert int(parent.rsplit(b"-", 1)[1], 16) & 1 == 0
    assert recorded.spans == ()


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, timeout=100
    )


MAKE = "import sys; from tamiyo.schemas.client.tracing import traces; made = traces(); "


@pytest.mark.parametrize(
    "environment", [{}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}]
)
def test_without_an_exporter_opentelemetry_is_not_imported(environment: dict[str, str]) -> None:
    ended = run(MAKE + "assert made is None; assert 'opentelemetry' not in sys.modules", **environment)
    assert ended.returncode == 0, ended.stderr


def test_the_environment_names_an_exporter() -> None:
    code = MAKE + (
        "import types; made.from_host('telemetry', types.SimpleNamespace(run_id='run', step=1)); "
        "assert traces()._tracer is not None"
    )
    ended = run(code, OTEL_TRACES_EXPORTER="console", OTEL_SERVICE_NAME="tamiyo-host")
    assert ended.returncode == 0, ended.stderr
    assert '"name": "tamiyo.telemetry"' in ended.stdout
    assert '"service.name": "tamiyo-host"' in ended.stdout


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (MAKE, "OTEL_TRACES_EXPORTER=zipkin: no exporter zipkin is installed, only console"),
        ("import sys; sys.modules['opentelemetry'] = None; " + MAKE, "install tamiyo with the extra `otel`"),
        ("import sys; sys.modules['opentelemetry.sdk'] = None; " + MAKE, "install tamiyo with the extra `otel`"),
    ],
)
def test_an_exporter_that_is_not_there_is_named(code: str, words: str) -> None:
    ended = run(code, OTEL_TRACES_EXPORTER="zipkin")
    assert ended.returncode == 1
    assert f"ConfigurationError: {words}" in ended.stderr or words in ended.stderr


def test_a_provider_of_the_program_is_used() -> None:
    code = (
        "from opentelemetry import trace; from opentelemetry.sdk.trace import TracerProvider; "
        "from tamiyo.schemas.client.tracing import traces; assert traces() is None; "
        "trace.set_tracer_provider(TracerProvider()); assert traces() is not None"
    )
    ended = run(code)
    assert ended.returncode == 0, ended.stderr
