"""The peer: Quix Streams computes the same window statistics from the same telemetry, one signal a message.

It processes a layer-signal as intake and windows do: checks its ranges, computes the health score, and keeps per layer,
source and metric the statistics of an event-time tumbling window, published once when the window is final. It omits
deviations and priorities, deterministic ids, dead letters, and a changelog of its state (with which Quix survives the
loss of its disk).

Run `python -m tamiyo.evaluation.bench.quix_peer` with a broker, two topics and a folder; SIGTERM ends it.
"""

import json
import math
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from tamiyo.evaluation.common.command_line import run_program
from tamiyo.evaluation.common.simulated_runs import STEP_MS, Load, frames
from tamiyo.schemas.telemetry import OPTIONAL_HEALTH, Frame, KernelPerformance, LayerHealth

Signal = dict[str, Any]
Moments = list[float]
"""One metric in one window: count, mean, M2, minimum, maximum, last, mean of time, M2 of time, co-moment."""
FIXED = {*Frame.model_fields, "layer_id", "seed_id", "chunk_id", *OPTIONAL_HEALTH}


def signals(load: Load, run: int) -> Iterator[tuple[str, Signal]]:
    """Yield one run's layer-signals in order, as (key, message); each is a row of a layer frame."""
    for frame in frames(load, run):
        if not isinstance(frame, KernelPerformance | LayerHealth):
            continue
        source = "kernel_performance" if isinstance(frame, KernelPerformance) else "health_signals"
        columns = {name: getattr(frame, name) for name in type(frame).model_fields if name not in FIXED}
        for row, layer in enumerate(frame.layer_id):
            message = {
                "run_id": frame.run_id,
                "source": source,
                "layer_id": layer,
                "step": frame.step,
                "time_ms": frame.time_ms,
                "metrics": {name: column[row] for name, column in columns.items()},
            }
            yield f"{frame.run_id}/{layer}/{source}", message


def encode(message: Signal) -> bytes:
    """Encode a message as JSON."""
    return json.dumps(message, separators=(",", ":")).encode()


def valid(signal: Signal) -> bool:
    """Return whether every value is None or a finite number, and negative only where the metric allows it."""
    return signal["step"] >= 0 and all(
        value is None or (math.isfinite(value) and (value >= 0 or name in ("contribution", "avg_correlation")))
        for name, value in signal["metrics"].items()
    )


def score(signal: Signal) -> Signal:
    """Add the health score to a kernel_performance signal."""
    metrics = signal["metrics"]
    if "execution_latency_ms" in metrics:
        execution = 1 - min(metrics["execution_latency_ms"] / 10, 1)
        errors = 1 - min(5 * metrics["error_count"] / max(metrics["total_executions"], 1), 1)
        metrics["health"] = 0.4 * execution + 0.4 * errors + 0.2 * metrics["cache_hit_rate"]
    return signal


def begin(signal: Signal) -> dict[str, Moments]:
    """Return the moments of a window with one signal."""
    return fold({}, signal)


def fold(window: dict[str, Moments], signal: Signal) -> dict[str, Moments]:
    """Add a signal to a window's moments (Welford's update, for time and value together)."""
    time = float(signal["step"])
    for name, value in signal["metrics"].items():
        if value is None:
            continue
        if name not in window:
            window[name] = [1.0, value, 0.0, value, value, value, time, 0.0, 0.0]
            continue
        count, mean, m2, minimum, maximum, _, time_mean, time_m2, co = window[name]
        count += 1
        from_mean, from_time = value - mean, time - time_mean
        mean += from_mean / count
        time_mean += from_time / count
        window[name] = [
            count,
            mean,
            m2 + from_mean * (value - mean),
            min(minimum, value),
            max(maximum, value),
            value,
            time_mean,
            time_m2 + from_time * (time - time_mean),
            co + from_time * (value - mean),
        ]
    return window


def statistics(window: dict[str, Moments]) -> dict[str, dict[str, float | None]]:
    """Return the statistics of each metric of a final window, as in HealthWindow."""
    return {
        name: {
            "count": count,
            "mean": mean,
            "variance": m2 / count,
            "minimum": minimum,
            "maximum": maximum,
            "last": last,
            "slope": co / time_m2 if time_m2 > 0 else None,
        }
        for name, (count, mean, m2, minimum, maximum, last, _, time_m2, co) in window.items()
    }


def main(
    bootstrap_servers: Annotated[str, typer.Option(help="host:port of Kafka")],
    source: Annotated[str, typer.Option(help="Existing topic to read")],
    target: Annotated[str, typer.Option(help="Existing topic to write")],
    state: Annotated[Path, typer.Option(help="Folder of the state")],
    width: Annotated[int, typer.Option(help="Width of a window, steps")] = 50,
) -> None:
    """Aggregate signals into windows until SIGTERM.

    Example: `python -m tamiyo.evaluation.bench.quix_peer --bootstrap-servers localhost:9092 --source signals
    --target windows --state /tmp/peer`
    """
    from quixstreams import Application
    from quixstreams.models import TopicAdmin, TopicConfig, TopicManager

    class Admin(TopicAdmin):  # type: ignore[misc]
        """Requests metadata only: the embedded broker cannot describe a topic's configuration."""

        def inspect_topics(self, topic_names: list[str], timeout: float = 30) -> dict[str, Any]:
            known = self.list_topics(timeout=timeout)
            extra = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
            return {
                name: TopicConfig(num_partitions=len(known[name].partitions), replication_factor=1, extra_config=extra)
                if name in known
                else None
                for name in topic_names
            }

    group = "tamiyo-bench-peer"
    app = Application(
        topic_manager=TopicManager(Admin(bootstrap_servers), group, auto_create_topics=False),
        broker_address=bootstrap_servers,
        consumer_group=group,
        auto_offset_reset="earliest",
        use_changelog_topics=False,
        state_dir=state,
        loglevel="WARNING",
        consumer_poll_timeout=0.05,
    )
    incoming = app.topic(source, key_deserializer="str", value_deserializer="json")
    outgoing = app.topic(target, key_serializer="str", value_serializer="json")
    frame = app.dataframe(incoming).filter(valid).apply(score)
    windows = frame.tumbling_window(timedelta(milliseconds=width * STEP_MS)).reduce(fold, begin).final()
    windows = windows.apply(lambda window: {**window, "value": statistics(window["value"])})
    windows.to_topic(outgoing)
    app.run()


if __name__ == "__main__":
    run_program(main)
