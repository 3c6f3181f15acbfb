"""The latency of intake on a broker, at a rate far below what it sustains: from producing a frame to its signal."""

import time
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

from confluent_kafka import Consumer, Producer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from tamiyo.evaluation.bench.chain import messages
from tamiyo.evaluation.bench.kafka import PARTITIONS, TIMEOUT_S, Broker, Measured, Message, worker
from tamiyo.evaluation.common.measure import Result, percentile
from tamiyo.evaluation.common.simulated_runs import Load
from tamiyo.schemas.analysis import HealthSignals
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.topics import BY_NAME, SIGNALS, TOPOLOGY

RATE = 60.0
"""Frames a second: 20 sampled steps of runs of 50 layers, about a tenth of what one core's intake takes."""
WARM_UP = 60
LONGEST_POLL_S = 0.1


def intake_latency(where: Broker, load: Load, *, frames: int, repeats: int) -> list[Result]:
    """Measure the time from a telemetry frame's produce to the arrival of its signal at a consumer, ms.

    Both ends are in this process, so the time includes the broker twice. The frames are sent one by one, without the
    5 ms for which a host collects a batch; the values are the 99th percentiles of the repeats. The second row is the
    stage's own measurement, from the arrival of the frame to the delivery of the signal, an upper bound from buckets.

    Args:
        where: The broker.
        load: The runs whose frames are sent; at least `repeats` x `frames` and the warm-up.
        frames: Frames of a repeat.
        repeats: Values of the result.
    """
    load = replace(load, name="intake-latency")
    ready = [each for each in messages(load) if each.topic != TOPOLOGY.name]
    if len(ready) < WARM_UP + repeats * frames:
        raise ValueError(f"expected at least {WARM_UP + repeats * frames} frames, the load has {len(ready)}")
    coming = iter(ready)
    with worker(where, ["intake"], "") as process:
        _paced(where, process, list(islice(coming, WARM_UP)))
        before = _buckets(process)
        samples = [_paced(where, process, list(islice(coming, frames))) for _ in range(repeats)]
        stage_p99 = 1000 * bucket_p99(before, _buckets(process))
    every = [each for sample in samples for each in sample]
    extra = {
        "p50_ms": percentile(every, 0.5),
        "p99_ms": percentile(every, 0.99),
        "maximum_ms": max(every),
        "batches": len(every),
        "rate": RATE,
        "layers": load.layers,
        "broker": where.kind,
    }
    values = tuple(percentile(sample, 0.99) for sample in samples)
    return [
        Result("intake latency", "p99, frame produced to signal", "ms", values, "lower", extra),
        Result("intake latency", "p99, frame arrived to signal delivered", "ms", (stage_p99,), "lower"),
    ]


def _paced(where: Broker, process: Measured, ready: Sequence[Message]) -> list[float]:
    """Send frames at `RATE` and return the latency of each, ms."""
    consumer = Consumer(
        where.kafka.librdkafka(**{"group.id": "tamiyo-bench-latency", "enable.auto.commit": False, "log_level": 0})
    )
    producer = Producer(where.kafka.librdkafka(**{"linger.ms": 0, "log_level": 0}))
    try:
        places = [TopicPartition(SIGNALS.name, number) for number in range(PARTITIONS)]
        for place in places:
            place.offset = consumer.get_watermark_offsets(place, timeout=10)[1]
        consumer.assign(places)
        sent: dict[tuple[str, str, int], float] = {}
        latencies: list[float] = []
        waiting = deque((_named(each), each) for each in ready)
        began = time.perf_counter()
        quiet_since = began
        while len(latencies) < len(ready):
            now = time.perf_counter()
            if waiting and now >= began + len(sent) / RATE:
                name, each = waiting.popleft()
                sent[name] = time.perf_counter()
                producer.produce(each.topic, each.value, each.key, each.partition, timestamp=each.time_ms)
                producer.poll(0)
            # It waits until the next frame is due: asking more often would take a core from what is measured.
            due = began + len(sent) / RATE - time.perf_counter() if waiting else LONGEST_POLL_S
            message = consumer.poll(max(due, 0.0))
            if message is None or message.error() is not None:
                if now - quiet_since > TIMEOUT_S:
                    process.check()
                    raise BrokerError(f"intake published {len(latencies)} of {len(ready)} signals and nothing more")
                continue
            quiet_since = arrived = time.perf_counter()
            signal = decode(message.value(), HealthSignals)
            at = sent.get((signal.run_id, signal.source, signal.step))
            if at is not None:
                latencies.append(1000 * (arrived - at))
        return latencies
    finally:
        consumer.close()
        producer.flush(10)


def _named(message: Message) -> tuple[str, str, int]:
    """Return the run, the source and the step of a frame."""
    record = decode(message.value, BY_NAME[message.topic].record)
    return message.key, message.topic, record.step  # type: ignore[attr-defined]


def _buckets(process: Measured) -> dict[float, float]:
    """Return the counts of intake's `tamiyo_stage_latency_seconds` up to each edge, seconds."""
    with urllib.request.urlopen(f"http://127.0.0.1:{process.port}/metrics", timeout=5) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    return {
        float(sample.labels["le"]): sample.value
        for family in families
        if family.name == "tamiyo_stage_latency_seconds"
        for sample in family.samples
        if sample.name.endswith("_bucket") and sample.labels["stage"] == "intake"
    }


def bucket_p99(before: Mapping[float, float], after: Mapping[float, float]) -> float:
    """Return the upper edge of the bucket with the 99th percentile of what was observed between two readings."""
    observed = {edge: count - before.get(edge, 0.0) for edge, count in after.items()}
    return min(edge for edge, count in observed.items() if count >= 0.99 * observed[max(observed)])
