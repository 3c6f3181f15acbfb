"""Prometheus metrics of a training process, collected from its handle at each scrape."""

import asyncio
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tamiyo.host import Handle
from tamiyo.streams.process.http_endpoint import HealthServer, labelled

START_TIMEOUT_S = 10.0


class HostCollector:
    """Collects `Handle.stats`, which documents the values."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def collect(self) -> Iterable[Metric]:
        """Return the current metric families, each sample with the label `run`."""
        stats = self._handle.stats
        records = CounterMetricFamily(
            "tamiyo_host_records", "Records by result: published to Kafka, or dropped.", labels=["result"]
        )
        records.add_metric(["published"], stats.published_records)
        records.add_metric(["dropped"], stats.dropped_records)
        decisions = CounterMetricFamily(
            "tamiyo_host_decisions", "Decisions by result: executed, refused, failed or repeated.", labels=["result"]
        )
        for result in ("executed", "refused", "failed", "repeated"):
            decisions.add_metric([result], getattr(stats, result))
        seconds = CounterMetricFamily(
            "tamiyo_host_seconds", "Wall-clock time of the training and of the SDK.", labels=["whose"]
        )
        seconds.add_metric(["training"], stats.training_seconds)
        seconds.add_metric(["sdk"], stats.sdk_seconds)
        parameters = GaugeMetricFamily(
            "tamiyo_host_parameters", "Parameters of the network: base network and kernels.", labels=["part"]
        )
        parameters.add_metric(["kernels"], stats.kernel_parameters)
        parameters.add_metric(["base"], stats.parameters - stats.kernel_parameters)
        families = [
            CounterMetricFamily("tamiyo_host_steps", "Completed training steps.", value=stats.step),
            CounterMetricFamily(
                "tamiyo_host_errors", "Errors in the SDK; training continues after them.", value=stats.errors
            ),
            GaugeMetricFamily(
                "tamiyo_host_overhead_ratio", "Time in the SDK / time in training.", stats.overhead_ratio
            ),
            GaugeMetricFamily(
                "tamiyo_host_connected", "Whether the SDK has ever been connected to Kafka.", int(stats.connected)
            ),
            records,
            decisions,
            seconds,
            parameters,
        ]
        return [labelled(family, {"run": stats.run_id}) for family in families]


@contextmanager
def served(handle: Handle, *, host: str = "127.0.0.1", port: int = 0, prefix: str = "") -> Iterator[int]:
    """Serve /metrics, /healthz and /readyz of a training run within the block, from a separate thread.

    The run is ready once it has been connected to Kafka.

    Args:
        handle: the attached run.
        host: address to listen on.
        port: 0 for any free port.
        prefix: the installation's topic prefix, for the label of every metric.

    Yields:
        The port.

    Raises:
        ConfigurationError: the port is in use.
    """
    collector = HostCollector(handle)
    loop = asyncio.new_event_loop()
    server = HealthServer(
        healthy=lambda: {"ok": True, "step": handle.stats.step},
        ready=lambda: {"ok": handle.stats.connected, "connected": handle.stats.connected},
        prefix=prefix,
        host=host,
        port=port,
    )
    thread = threading.Thread(target=loop.run_forever, name="tamiyo-http", daemon=True)
    thread.start()
    REGISTRY.register(collector)
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(START_TIMEOUT_S)
        yield server.port
    finally:
        REGISTRY.unregister(collector)
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(START_TIMEOUT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(START_TIMEOUT_S)
        loop.close()
