"""`make bench`: measure throughput, latency and host overhead on this machine.

Throughput is in layer-signals per second and core: one layer-signal is one layer's row of one telemetry frame, and a
core's second is a processor second of the measured processes, so that a busy machine changes little. Latencies are
wall time. Every row is the minimum, median and maximum of its repeats after a warm-up.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from tamiyo.evaluation.bench import chain as bench_chain
from tamiyo.evaluation.bench.codec import codec
from tamiyo.evaluation.bench.host import LOOPS, overhead
from tamiyo.evaluation.bench.kafka import Broker, BrokerKind, broker
from tamiyo.evaluation.bench.learner import updates
from tamiyo.evaluation.bench.policy import decisions
from tamiyo.evaluation.common import stage_bench as bench_stages
from tamiyo.evaluation.common.measure import Result, machine, versions
from tamiyo.evaluation.common.report import require_folder
from tamiyo.evaluation.common.simulated_runs import Load
from tamiyo.streams.process.logs import configure

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """The sizes of the measurements. 50 layers are a ResNet-50; a window of 50 steps contains 5 sampled steps."""

    repeats: int
    stages: Load
    flow: Load
    """Fits the embedded broker, which keeps 5 MiB a partition, so that no message is lost before it is read."""
    single: Load | None
    """Frames of one layer: the cost of the chain without the advantage of framing."""
    decision_seconds: float
    host_blocks: int
    host_repeats: int
    kernels: int


FULL = Plan(
    repeats=3,
    stages=Load(runs=16, layers=50, frames=60),
    flow=Load(runs=16, layers=50, frames=30),
    single=Load(runs=64, layers=1, frames=30),
    decision_seconds=2.0,
    host_blocks=10,
    host_repeats=7,
    kernels=40,
)
QUICK = Plan(
    repeats=1,
    stages=Load(runs=4, layers=50, frames=20),
    flow=Load(runs=16, layers=50, frames=10),
    single=None,
    decision_seconds=0.5,
    host_blocks=3,
    host_repeats=2,
    kernels=10,
)


def in_memory(plan: Plan) -> Iterator[list[Result]]:
    """Measure codec, stages, decisions and learner, which need no broker."""
    yield codec(layers=50, records=500, repeats=max(plan.repeats, 3))
    with tempfile.TemporaryDirectory(prefix="tamiyo-bench-") as folder:
        bench = bench_stages.Bench(plan.stages, f"file://{folder}")
        inputs = bench_stages.stage_inputs(plan.stages, bench)
        yield bench_stages.stages(plan.stages, bench, inputs, repeats=plan.repeats)
        yield bench_stages.kernels(inputs, bench, count=plan.kernels, repeats=plan.repeats)
        graphs = [each.record for each in inputs["decisions"].messages]
        yield decisions(graphs, seconds=plan.decision_seconds, repeats=plan.repeats)
        yield updates(bench_stages.experiences(inputs, bench), repeats=plan.repeats)


def on_a_broker(plan: Plan, where: Broker) -> Iterator[list[Result]]:
    """Measure the SDK, the chain, and the peer against the same part of the chain."""
    for name in LOOPS:
        yield overhead(where.bootstrap_servers, name=name, blocks=plan.host_blocks, repeats=plan.host_repeats)
    yield [bench_chain.chain(where, plan.flow, repeats=plan.repeats)]
    mine = bench_chain.aggregation(where, plan.flow, repeats=plan.repeats)
    yield [mine]
    if plan.single is not None:
        name = "telemetry to window, one layer a frame"
        yield [bench_chain.aggregation(where, plan.single, repeats=1, name=name)]
    if find_spec("quixstreams") is None:
        return
    other = bench_chain.peer(where, plan.flow, repeats=plan.repeats)
    yield [other, bench_chain.ratio(mine, other)]


def table(results: list[Result]) -> Table:
    """Return the report as a table."""
    shown = Table(title="Tamiyo, measured", title_justify="left")
    for column in ("group", "quantity", "unit"):
        shown.add_column(column, overflow="fold")
    for column in ("minimum", "median", "maximum"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("", overflow="fold")
    group = ""
    for result in results:
        if result.group != group:
            shown.add_section()
        first, group = result.group if result.group != group else "", result.group
        numbers = [_number(value) for value in (result.minimum, result.median, result.maximum)]
        shown.add_row(first, result.name, result.unit, *numbers, _remark(result))
    return shown


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _remark(result: Result) -> str:
    extra = result.extra
    if "p99_ms" in extra:
        return f"p50 {extra['p50_ms']:.1f}, p99 {extra['p99_ms']:.1f} ms of {extra['batches']}"
    if "inputs_per_second" in extra:
        return f"{extra['inputs_per_second']:,} records/s"
    if "step_ms_with" in extra:
        return f"{extra['step_ms_without']:.2f} ms per step without, {extra['step_ms_with']:.2f} with"
    if "per_second" in extra:
        return f"{max(extra['per_second']):,.0f}/s wall time, {extra['broker']} broker"
    if "bytes" in extra:
        return f"{extra['bytes']:,} bytes"
    if "replayed" in extra:
        return f"{extra['fresh']} fresh and {extra['replayed']} replayed experiences, {extra['epochs']} epochs"
    return ""


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Small loads and one repeat; takes under a minute")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results as JSON to this file")] = None,
    kind: Annotated[
        BrokerKind, typer.Option("--broker", help="auto: Kafka from KAFKA_HOME if set, else embedded")
    ] = "auto",
) -> None:
    """Measure codec, stages, decisions, learner, SDK, the whole chain, and Quix Streams on the same load.

    Examples: `make bench` · `make bench ARGS="--quick"` · `make bench ARGS="--json bench.json --broker local"`
    """
    torch.set_num_threads(1)
    configure("WARNING")
    # A pipe has no width, and the default of 80 columns would fold every cell.
    console, progress = (Console(stderr=err, width=None if sys.stdout.isatty() else 130) for err in (False, True))
    require_folder(json_file, "--json")
    plan = QUICK if quick else FULL
    started, where_measured = time.monotonic(), machine()
    results: list[Result] = []

    def note(found: list[Result]) -> None:
        results.extend(found)
        for result in found:
            words = f"{time.monotonic() - started:5.0f} s  {result.group}: {result.name}  {_number(result.median)}"
            progress.print(f"{words} {result.unit}", highlight=False)

    for found in in_memory(plan):
        note(found)
    with broker(kind) as where:
        for found in on_a_broker(plan, where):
            note(found)
    console.print(table(results))
    if find_spec("quixstreams") is None:
        console.print("The peer was not measured: Quix Streams is missing; install the extra [bench].")
    processor, cores, load = (where_measured[name] for name in ("processor", "cores", "load_average"))
    console.print(f"{processor}, {cores} cores, load average {load[0]} at the start")
    if json_file is not None:
        report = {
            "format": FORMAT,
            "quick": quick,
            "seconds": round(time.monotonic() - started, 1),
            "machine": where_measured,
            "versions": versions(),
            "results": [result.to_dict() for result in results],
        }
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(bench)
