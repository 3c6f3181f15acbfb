"""One cell on a broker: workers process a load while its runs are open, then to their end."""

import os
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tamiyo.evaluation.bench.chain import messages
from tamiyo.evaluation.bench.kafka import PARTITIONS, Broker, Counter, Measured, Message, publish, worker
from tamiyo.evaluation.common.measure import cpu_seconds
from tamiyo.evaluation.common.policies import release
from tamiyo.evaluation.common.simulated_runs import Load
from tamiyo.evaluation.scale.cells import STEPS_PER_WINDOW, Cell, steps_of
from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.topics import CATALOGUE, CHECKPOINTS, DECISIONS

ALONE = {"batch.num.messages": 1}
"""A host sends its frames one by one: what they are compressed with is no other frame."""
IDLE_S = 2.0
"""Without a record for so long, a worker has nothing left to do."""
REST_S = 5.0
"""Long enough to tell apart what a process does without a load, in ticks of 10 ms."""
SETTLE_S = 120.0


def plan_cores(workers: int) -> tuple[list[int], list[int]]:
    """Return the cores of the workers, one each, and those of the broker and the load.

    The broker shares the workers' cores where fewer than two others are left.
    """
    cores = sorted(os.sched_getaffinity(0))
    rest = cores[workers:]
    return cores[:workers], rest if len(rest) >= 2 else cores


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Start processes on these cores: a child inherits the affinity of the thread that starts it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(where: Broker, cell: Cell) -> dict[str, Any]:
    """Measure a cell; return sizes, seconds, memory and bytes.

    `cpu_s` has a number for each worker and `broker_cpu_s` is the broker's, both without what they do while they wait
    (`idle_cores`, the broker's last); `rss_bytes` are those before the load, and with all runs of it open.
    """
    cores = plan_cores(len(cell.workers))[0] if cell.pinned else []
    with ExitStack() as stack:
        store = f"file://{stack.enter_context(TemporaryDirectory(prefix='tamiyo-scale-'))}"
        announced = release(store)
        publish(where, [Message(CHECKPOINTS.name, 0, announced.name, encode(announced), announced.time_ms)])
        counter = Counter(where, DECISIONS.name)
        stack.callback(counter.close)
        processes = []
        for number, stages in enumerate(cell.workers):
            with pinned([cores[number]]) if cores else ExitStack():
                processes.append(stack.enter_context(worker(where, stages, store)))
        _wait_shared(cell, processes)
        warm_up = replace(cell.load, name=f"{cell.load.name}-warm-up", runs=PARTITIONS, frames=steps_of(1))
        _pass(where, warm_up, processes, counter, [0.0] * (len(processes) + 1))
        idle = _idle_cores(where, processes)
        rounds = [
            _pass(where, replace(cell.load, seed=number), processes, counter, idle) for number in range(cell.repeats)
        ]
    load = cell.load
    return {
        "runs": load.runs,
        "layers": load.layers,
        "steps": load.runs * load.frames,
        "windows": _windows(load) + load.runs,
        "layer_signals": load.layer_signals,
        "workers": [list(stages) for stages in cell.workers],
        "cores": cores,
        "idle_cores": idle,
        "rounds": rounds,
    }


def _windows(load: Load) -> int:
    """Return how many windows are final before the last sampled step."""
    return load.runs * ((load.frames - 2) // STEPS_PER_WINDOW)


def _pass(
    where: Broker, load: Load, processes: Sequence[Measured], counter: Counter, idle: Sequence[float]
) -> dict[str, Any]:
    ready = iter(list(messages(load)))
    open_runs = load.runs + 3 * load.runs * (load.frames - 1)
    sizes, before = topic_sizes(where), [process.rss_bytes for process in processes]
    cpu, began = _cpu_s(where, processes), time.perf_counter()
    publish(where, islice(ready, open_runs), ALONE)
    counter.wait(processes, load.run_ids, _windows(load), _decision_id)
    waited = _wait_idle(processes)
    held = [process.rss_bytes for process in processes]
    publish(where, ready, ALONE)
    counter.wait(processes, load.run_ids, _windows(load) + load.runs, _decision_id)
    wall = time.perf_counter() - began - waited
    _wait_idle(processes)
    elapsed = time.perf_counter() - began
    used = zip(_cpu_s(where, processes), cpu, idle, strict=True)
    *workers, broker = (after - earlier - cores * elapsed for after, earlier, cores in used)
    after = topic_sizes(where)
    return {
        "wall_s": wall,
        "cpu_s": workers,
        "broker_cpu_s": broker,
        "rss_bytes": [[a, b] for a, b in zip(before, held, strict=True)],
        "topics": {name: [a - b for a, b in zip(after[name], sizes[name], strict=True)] for name in sizes},
    }


def _decision_id(value: bytes) -> str:
    return decode(value, DECISIONS.record).decision_id  # type: ignore[attr-defined, no-any-return]


def _cpu_s(where: Broker, processes: Sequence[Measured]) -> list[float]:
    """Return the processor seconds of each worker, and of the broker, so far."""
    broker = cpu_seconds([psutil.Process(where.node.pid)]) if where.node is not None else 0.0
    return [*(process.cpu_s for process in processes), broker]


def topic_sizes(where: Broker) -> dict[str, tuple[int, int]]:
    """Return, for each topic of the catalogue, the messages it has had and the bytes of its logs."""
    with PartitionReader(where.kafka) as reader:
        counts = {topic.name: sum(each.end for each in reader.ranges(topic.name)) for topic in CATALOGUE}
    return {name: (count, _log_bytes(where.node.data, name) if where.node else 0) for name, count in counts.items()}


def _log_bytes(folder: Path, topic: str) -> int:
    logs = (log for number in range(PARTITIONS) for log in (folder / f"{topic}-{number}").glob("*.log"))
    return sum(log.stat().st_size for log in logs)


def _idle_cores(where: Broker, processes: Sequence[Measured]) -> list[float]:
    """Return the cores that each process uses without a load: heartbeats, fetches that find nothing."""
    before, since = _cpu_s(where, processes), time.perf_counter()
    time.sleep(REST_S)
    elapsed = time.perf_counter() - since
    return [(after - earlier) / elapsed for after, earlier in zip(_cpu_s(where, processes), before, strict=True)]


def _wait_idle(processes: Sequence[Measured]) -> float:
    """Wait until no process receives or publishes records any more; return the seconds that took."""
    began = time.perf_counter()

    def records() -> list[float]:
        return [
            sum(_metric(process, "tamiyo_records_received").values())
            + sum(_metric(process, "tamiyo_records_published").values())
            for process in processes
        ]

    def idle() -> bool:
        before = records()
        time.sleep(IDLE_S)
        return records() == before

    _wait(idle, processes, "idle")
    return time.perf_counter() - began


def _wait_shared(cell: Cell, processes: Sequence[Measured]) -> None:
    """Wait until workers of the same stages have equally many partitions."""
    counts = {stages: cell.workers.count(stages) for stages in cell.workers}

    def shared() -> bool:
        return all(
            set(_metric(process, "tamiyo_stage_partitions").values()) == {PARTITIONS / counts[stages]}
            for stages, process in zip(cell.workers, processes, strict=True)
        )

    _wait(shared, processes, "evenly assigned")


def _metric(process: Measured, name: str) -> dict[tuple[str, str], float]:
    """Return the values of a metric of a worker by stage and topic, if it has these labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{process.port}/metrics", timeout=5) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    return {
        (sample.labels["stage"], sample.labels.get("topic", "")): sample.value
        for family in families
        if family.name == name
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def _wait(condition: Callable[[], bool], processes: Sequence[Measured], what: str) -> None:
    deadline = time.monotonic() + SETTLE_S
    while not condition():
        for process in processes:
            process.check()
        if time.monotonic() > deadline:
            raise BrokerError(f"the workers were not {what} within {SETTLE_S:.0f} s")
        time.sleep(0.1)
