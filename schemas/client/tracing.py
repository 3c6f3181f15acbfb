"""Traces of OpenTelemetry: one from a training step's telemetry to its decision, outcome and reward.

The context of a trace travels in the headers of messages (W3C Trace Context), never in a record, so that ids and bytes
are the same with and without traces. OpenTelemetry is imported only where traces are on: where `OTEL_TRACES_EXPORTER`
names an exporter, or the program around a training run has set a tracer provider of its own.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from tamiyo.schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, TracerProvider

__all__ = ["Traces", "traces"]

EXPORTER = "OTEL_TRACES_EXPORTER"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
MOST_DECISIONS = 10_000  # whose traces are remembered; an older one's outcome or reward begins a trace of its own

Headers = list[tuple[str, bytes]]
Received = Iterable[tuple[str, bytes | None]] | None
"""Headers of a message that was received."""


def traces() -> Traces | None:
    """Return what records the spans of one publisher or partition; None where traces are off.

    Raises:
        ConfigurationError: `OTEL_TRACES_EXPORTER` names an exporter that is not installed.
    """
    provider = _provider()
    return None if provider is None else Traces(provider)


class Traces:
    """Records spans, and passes their contexts on."""

    def __init__(self, provider: TracerProvider) -> None:
        """Record spans with a tracer of `provider`."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api = trace
        self._w3c = TraceContextTextMapPropagator()
        self._tracer = provider.get_tracer("tamiyo")
        self._decisions: dict[str, Context] = {}
        self._frame: tuple[int, Headers] | None = None

    def received(self, record: Any, headers: Received) -> None:
        """Remember the trace of a record about a decision: a later record about that decision goes on with it.

        Args:
            record: The record.
            headers: Those of its message.
        """
        decision_id = getattr(record, "decision_id", None)
        if decision_id is None:
            return
        self._decisions.pop(decision_id, None)
        self._decisions[decision_id] = self._extract(headers)
        if len(self._decisions) > MOST_DECISIONS:
            del self._decisions[next(iter(self._decisions))]

    def published(
        self, name: str, topic: str, record: Any, closed_by: Received = None, started: float | None = None
    ) -> Headers:
        """Record the span of the work that ends with a record.

        It is a child of the newest message about the record's decision, if that is known, with a link to the message
        that closed the record; else a child of the latter.

        Args:
            name: Of the span.
            topic: The catalogue's topic of the record.
            record: What is published.
            closed_by: Headers of the message that closed it.
            started: When the work began (`time.perf_counter()`); None: now.

        Returns:
            The headers with which whoever reads the record goes on.
        """
        closing = self._extract(closed_by)
        context = self._decisions.get(getattr(record, "decision_id", None) or "", closing)
        link = self._api.get_current_span(closing).get_span_context()
        links = [self._api.Link(link)] if context is not closing and link.is_valid else []
        now = time.time_ns()
        begun = now if started is None else now - round(1e9 * (time.perf_counter() - started))
        span = self._tracer.start_span(
            name,
            context,
            self._api.SpanKind.CONSUMER,
            _attributes(topic, record),
            links,
            start_time=begun,
        )
        span.end(now)
        return self._inject(span)

    def from_host(self, topic: str, record: Any) -> Headers:
        """Record the span of a host's record: the frame of a step, which begins a trace, or an adaptation.

        Args:
            topic: The catalogue's topic of the record.
            record: What is published.

        Returns:
            The headers with which whoever reads the record goes on; none for a record of no step.
        """
        if hasattr(record, "decision_id"):
            return self.published("tamiyo.execute", topic, record, started=time.perf_counter() - _seconds(record))
        step = getattr(record, "step", None)
        if step is None:
            return []
        if self._frame is None or self._frame[0] != step:  # all records of a step belong to one frame
            kind = self._api.SpanKind.PRODUCER
            span = self._tracer.start_span("tamiyo.telemetry", kind=kind, attributes=_attributes(topic, record))
            span.end()
            self._frame = step, self._inject(span)
        return self._frame[1]

    def _extract(self, headers: Received) -> Context:
        carrier = {name: value.decode("ascii", "replace") for name, value in headers or () if value is not None}
        return self._w3c.extract(carrier)  # without a header empty: no span that is current here

    def _inject(self, span: Span) -> Headers:
        carrier: dict[str, str] = {}
        self._w3c.inject(carrier, self._api.set_span_in_context(span))
        return [(name, value.encode()) for name, value in carrier.items()]


def _seconds(record: Any) -> float:
    return float(getattr(record, "duration_ms", 0.0)) / 1e3


def _attributes(topic: str, record: Any) -> dict[str, str | int]:
    found: dict[str, str | int] = {"messaging.system": "kafka", "messaging.destination.name": topic}
    for name in ("run_id", "step", "decision_id", "policy_version", "status"):
        value = getattr(record, name, None)
        if isinstance(value, str | int):
            found[f"tamiyo.{name}"] = value if isinstance(value, int) else str(value)
    return found


def _provider() -> TracerProvider | None:
    """Return the tracer provider of this process, made if the environment asks for one; None: traces are off."""
    names = [name for name in os.environ.get(EXPORTER, "").replace(" ", "").split(",") if name not in ("", "none")]
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if not names and "opentelemetry.trace" not in sys.modules:
        return None
    try:
        from opentelemetry import trace
    except ImportError as error:
        raise _missing(names, error) from error
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.NoOpTracerProvider):
        return None
    if not isinstance(provider, trace.ProxyTracerProvider):
        return provider
    return _make_provider(names) if names else None


def _make_provider(names: list[str]) -> TracerProvider:
    """Set the process's tracer provider, with what the SDK reads from the other `OTEL_*` variables."""
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise _missing(names, error) from error
    provider = SdkTracerProvider()
    for name in names:
        protocol = "grpc" if os.environ.get(PROTOCOL) == "grpc" else "http"
        entry = f"otlp_proto_{protocol}" if name == "otlp" else name
        found = list(entry_points(group="opentelemetry_traces_exporter", name=entry))
        if not found:
            known = sorted({each.name for each in entry_points(group="opentelemetry_traces_exporter")})
            known = [each.replace("otlp_proto_http", "otlp") for each in known]
            raise ConfigurationError(
                f"{EXPORTER}={','.join(names)}: no exporter {entry} is installed, only {', '.join(known) or 'none'}; "
                "tamiyo's extra `otel` has otlp over HTTP"
            )
        provider.add_span_processor(BatchSpanProcessor(found[0].load()()))
    trace.set_tracer_provider(provider)
    return provider


def _missing(names: list[str], error: ImportError) -> ConfigurationError:
    return ConfigurationError(
        f"{EXPORTER}={','.join(names)} needs OpenTelemetry: install tamiyo with the extra `otel`, or unset it ({error})"
    )
