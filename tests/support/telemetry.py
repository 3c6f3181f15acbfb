"""Telemetry for tests: frames of a small network, the partitions that hold them, and what stages made of them."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import fastavro

from tamiyo.schemas.analysis import HealthSignals, HealthWindow
from tamiyo.schemas.avro_schema import released
from tamiyo.schemas.codec import encode, single_object_header
from tamiyo.schemas.columns import ColumnarRecord
from tamiyo.schemas.identity import identity
from tamiyo.schemas.record import Record
from tamiyo.schemas.telemetry import (
    CacheHitRates,
    ErrorRecoveryEvent,
    KernelPerformance,
    LayerHealth,
    LayerNode,
    ModelPerformance,
    ModelTopology,
)
from tamiyo.schemas.topics import PERIODIC, SIGNALS
from tamiyo.streams.settings import WindowSettings
from tamiyo.streams.stages.base import Incoming, Output, PriorOutput, Reject
from tamiyo.streams.stages.windows.stage import WindowsStage

COMPANIONS = [topic.name for topic in PERIODIC]
BEGAN_MS = 1_700_000_000_000


class DictView:
    """A view over a dictionary."""

    def __init__(self, records: dict[str, Any] | None = None) -> None:
        self.records = records if records is not None else {}

    def get(self, key: str) -> Any:
        return self.records.get(key)

    def items(self) -> Iterable[tuple[str, Any]]:
        return list(self.records.items())


def clock(step: int) -> dict[str, Any]:
    """Return a frame's fields of time: a step takes a second."""
    return {"step": step, "time_ms": BEGAN_MS + 1000 * step, "companions": COMPANIONS}


def kernel_performance(step: int, latency: Sequence[float] = (1.0, 2.0), /, **fields: Any) -> KernelPerformance:
    layers = [f"layer.{n}" for n in range(len(latency))]
    values = {"run_id": "run", "layer_id": layers, "execution_latency_ms": list(latency), **clock(step), **fields}
    return KernelPerformance(**values)


def layer_health(step: int, gradient_norm: Sequence[float] = (0.1, 0.2), /, **fields: Any) -> LayerHealth:
    n = len(gradient_norm)
    values: dict[str, Any] = {
        "run_id": "run",
        "layer_id": [f"layer.{i}" for i in range(n)],
        "gradient_norm": list(gradient_norm),
        "update_ratio": [0.001] * n,
        "growth_score": [0.5] * n,
        "contribution": [None] * n,
        "kernel_load": [0.25] * n,
        "alpha": [1.0] * n,
        "dormant_seeds": [3] * n,
        "active_seeds": [1] * n,
        "fossilized_seeds": [0] * n,
        "error_seeds": [0] * n,
        "parameters": [100] * n,
        "kernel_parameters": [20] * n,
        "learning_rate_scale": [1.0] * n,
    }
    return LayerHealth(**{**values, **clock(step), **fields})


def model_performance(step: int, train_loss: float = 1.0, /, **fields: Any) -> ModelPerformance:
    return ModelPerformance(**{"run_id": "run", "train_loss": train_loss, **clock(step), **fields})


def cache_hit_rates(step: int, /, **fields: Any) -> CacheHitRates:
    values = {"hits": 3, "misses": 1, "evictions": 2, "hit_rate": 0.75, "entries": 4, "capacity": 8}
    return CacheHitRates(**{"run_id": "run", **values, **clock(step), "companions": [], **fields})


def error_recovery(step: int, /, **fields: Any) -> ErrorRecoveryEvent:
    values: dict[str, Any] = {"layer_id": "layer.0", "seed_id": 0, "error_type": "non_finite", "strategy": "retry"}
    values |= {"success": True, "recovery_time_ms": 4.0}
    return ErrorRecoveryEvent(**{"run_id": "run", **values, **clock(step), "companions": [], **fields})


def signal(
    source: str,
    step: int,
    metrics: dict[str, list[float | None]] | None = None,
    model_metrics: dict[str, float] | None = None,
    *,
    run_id: str = "run",
    layers: Sequence[str] = (),
    **fields: Any,
) -> HealthSignals:
    """Return one signal of `source` (a topic's name) at `step`."""
    metrics = metrics or {}
    length = len(layers)
    values: dict[str, Any] = {
        "run_id": run_id,
        "signal_id": identity("signal", run_id, source, step, str(fields.get("final", False))),
        "source": source,
        "layer_id": list(layers),
        "metrics": metrics,
        "priority": [0.0] * length,
        "survival": [1.0] * length,
        "model_metrics": model_metrics or {},
    }
    return HealthSignals(**{**values, **clock(step), **fields})


def topology(layers: Sequence[str], run_id: str = "run") -> ModelTopology:
    nodes = [
        LayerNode(layer_id=name, type="linear", parameters=10, input_shape=[4], output_shape=[2], seeds=4)
        for name in layers
    ]
    return ModelTopology(
        run_id=run_id,
        topology_id=identity("topology", *layers),
        time_ms=BEGAN_MS,
        layers=nodes,
        edges=[],
        parameters=10 * len(layers),
        parameter_budget=1000,
    )


def incoming(record: Any, topic: str = SIGNALS.name, offset: int = 0, timestamp_ms: int | None = None) -> Incoming:
    """Return a record as the stage is fed it; without `timestamp_ms` it arrived when it was measured."""
    arrived = record.time_ms if timestamp_ms is None else timestamp_ms
    return Incoming(topic, 0, offset, arrived, record, encode(record), record.run_id.encode())


def partition(records: Iterable[Record], topic: str = SIGNALS.name, first: int = 0) -> list[Incoming]:
    """Return records as one partition of `topic`."""
    return [incoming(record, topic, offset) for offset, record in enumerate(records, first)]


def outputs(produced: Iterable[Output | Reject]) -> list[Output]:
    return [each for each in produced if isinstance(each, Output)]


def rejects(produced: Iterable[Output | Reject]) -> list[Reject]:
    return [each for each in produced if isinstance(each, Reject)]


def prior_outputs(published: Sequence[Output]) -> list[PriorOutput]:
    """Return outputs as the runner would read them back."""
    result = []
    for offset, output in enumerate(published):
        sources = {} if output.source is None else {output.source.topic: output.source.offset}
        result.append(
            PriorOutput(output.topic.name, offset, output.record, output.identity, sources, output.member_ids)
        )
    return result


def windows_stage(**fields: Any) -> WindowsStage:
    """Return a stage of partition 0 whose runs never count as idle, unless `idle_timeout_s` is given."""
    return WindowsStage(0, WindowSettings(**{"idle_timeout_s": 0, **fields}), {})


def as_released(record: ColumnarRecord, version: str = "0.1.0") -> bytes:
    """Return a record as a released version encodes it, with lists instead of columns."""
    schema = released(type(record))[version]
    framing = single_object_header(schema)
    buffer = io.BytesIO(framing)
    buffer.seek(len(framing))
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(schema), {**record.model_dump(), **record.lists()})
    return buffer.getvalue()


def windows(produced: Any) -> list[HealthWindow]:
    """Return the windows among what a stage produced."""
    return [output.record for output in outputs(produced)]
