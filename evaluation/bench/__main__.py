"""`make bench`: measure throughput, latency and host overhead on this machine.

Throughput is in layer-signals per second and core: one layer-signal is one layer's row of one telemetry frame, and a
core's second is a processor second of the measured processes, so that a busy machine changes little. Latencies are
wall time. Every row is the minimum, median and maximum of its repeats after a warm-up. The bars are in `bars`.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from tamiyo.evaluation.bench import chain as bench_chain
from tamiyo.evaluation.bench.bars import Verdict, verdicts
from tamiyo.evaluation.bench.codec import codec
from tamiyo.evaluation.bench.host import LOOPS, overhead
from tamiyo.evaluation.bench.intake_latency import intake_latency
from tamiyo.evaluation.bench.kafka import Broker, BrokerKind, broker
from tamiyo.evaluation.bench.learner import updates
from tamiyo.evaluation.bench.peers import PEERS, Peer, peer, ratio
from tamiyo.evaluation.bench.policy import decisions
from tamiyo.evaluation.common import stage_bench as bench_stages
from tamiyo.evaluation.common.command_line import run_program
from tamiyo.evaluation.common.measure import Result, machine, versions
from tamiyo.evaluation.common.report import ReportFile, prepare_report, write_report
from tamiyo.evaluation.common.simulated_runs import Load
from tamiyo.schemas.display import narrow
from tamiyo.streams.admin.brokers import kafka_home
from tamiyo.streams.process.logs import configure
from tamiyo.streams.settings import LogSettings

FORMAT = 2
ORDER = ("on a broker", "peers", "intake latency", "decision latency", "stage alone", "codec", "learner", "SDK")
"""The groups of the report, what users notice first at the top."""

Phase = tuple[str, Callable[[], list[Result]]]
"""What is measured, and the function that does it."""


@dataclass(frozen=True)
class Plan:
    """The sizes of the measurements. 50 layers are a ResNet-50; a window of 50 steps contains 5 sampled steps."""

    repeats: int
    stages: Load
    flow: Load
    """Fits the embedded broker, which keeps 5 MiB a partition, so that no message is lost before it is read."""
    single: Load
    """Frames of one layer: the cost of the chain without the advantage of framing."""
    latency_frames: int
    decision_seconds: float
    host_blocks: int
    host_repeats: int
    kernels: int


FULL = Plan(
    repeats=3,
    stages=Load(runs=16, layers=50, frames=60),
    flow=Load(runs=16, layers=50, frames=30),
    single=Load(runs=64, layers=1, frames=30),
    latency_frames=600,
    decision_seconds=2.0,
    host_blocks=10,
    host_repeats=7,
    kernels=40,
)
QUICK = Plan(
    repeats=1,
    stages=Load(runs=4, layers=50, frames=20),
    flow=Load(runs=16, layers=50, frames=10),
    single=Load(runs=16, layers=1, frames=10),
    latency_frames=120,
    decision_seconds=0.5,
    host_blocks=3,
    host_repeats=2,
    kernels=10,
)


def in_memory(plan: Plan) -> Iterator[Phase]:
    """Yield the measurements that need no broker: codec, stages, decisions and learner."""
    yield "codec", lambda: codec(layers=50, records=500, repeats=max(plan.repeats, 3))
    with tempfile.TemporaryDirectory(prefix="tamiyo-bench-") as folder:
        bench = bench_stages.Bench(plan.stages, f"file://{folder}")
        inputs = bench_stages.stage_inputs(plan.stages, bench)
        yield "stages alone", lambda: bench_stages.stages(plan.stages, bench, inputs, repeats=plan.repeats)
        yield "kernels", lambda: bench_stages.kernels(inputs, bench, count=plan.kernels, repeats=plan.repeats)
        graphs = [each.record for each in inputs["decisions"].messages]
        yield "decisions", lambda: decisions(graphs, seconds=plan.decision_seconds, repeats=plan.repeats)
        # An update that stops early takes half as long, so several are measured.
        yield "learner", lambda: updates(bench_stages.experiences(inputs, bench), repeats=3 * plan.repeats)


def on_a_broker(plan: Plan, where: Broker) -> Iterator[Phase]:
    """Yield the measurements of the chain, of the peers against the same part of it, of intake and of the SDK."""
    repeats = plan.repeats
    mine: list[Result] = []

    def aggregation() -> list[Result]:
        mine.append(bench_chain.aggregation(where, plan.flow, repeats=repeats))
        return mine

    yield "telemetry to decision", lambda: [bench_chain.chain(where, plan.flow, repeats=repeats)]
    yield "telemetry to window", aggregation
    name = "telemetry to window, one layer a frame"
    yield name, lambda: [bench_chain.aggregation(where, plan.single, repeats=repeats, name=name)]
    for each in PEERS:
        if each.installed:

            def against(each: Peer = each) -> list[Result]:
                other = peer(where, each, plan.flow, repeats=repeats)
                return [other, ratio(mine[0], other, each.name)]

            yield each.name, against
    runs = Load(runs=16, layers=50, frames=3 + repeats * plan.latency_frames // 48)
    yield "intake latency", lambda: intake_latency(where, runs, frames=plan.latency_frames, repeats=repeats)
    for loop in LOOPS:

        def sdk(loop: str = loop) -> list[Result]:
            return overhead(where.bootstrap_servers, name=loop, blocks=plan.host_blocks, repeats=plan.host_repeats)

        yield f"SDK, {loop}", sdk


def bars_table(found: Sequence[Verdict]) -> Table:
    """Return the bars as a table."""
    shown = Table(title="Bars", title_justify="left")
    shown.add_column("bar", overflow="fold")
    shown.add_column("unit")
    for column in ("value", "bar"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("")
    for each in found:
        limit = f"{'at least' if each.bar.better == 'higher' else 'below'} {_number(each.bar.limit)}"
        value = "not measured" if each.value is None else _number(each.value)
        shown.add_row(each.bar.name, each.bar.unit, value, limit, "met" if each.met else "[red]missed[/]")
    return shown


def table(results: list[Result]) -> Table:
    """Return the report as a table."""
    shown = Table(title="Tamiyo, measured", title_justify="left")
    for column in ("group", "quantity", "unit"):
        shown.add_column(column, overflow="fold")
    for column in ("minimum", "median", "maximum"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("", overflow="fold")
    group = ""
    for result in sorted(results, key=lambda result: ORDER.index(result.group)):
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
    report: ReportFile = None,
    kind: Annotated[
        BrokerKind, typer.Option("--broker", help="auto: Kafka from KAFKA_HOME if set, else embedded")
    ] = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 if a bar is missed")] = False,
) -> None:
    """Measure codec, stages, decisions, learner, SDK and the whole chain, beside Quix Streams, aiokafka and Faust.

    Examples: `make bench` · `make bench ARGS="--quick"` ·
    `make bench ARGS="--report bench.json --broker local --strict"`
    """
    prepare_report(report)
    torch.set_num_threads(1)
    configure(LogSettings(level="WARNING"))
    # A pipe has no width, and the default of 80 columns would fold every cell.
    console, progress = (Console(stderr=err, width=None if sys.stdout.isatty() else 130) for err in (False, True))
    plan = QUICK if quick else FULL
    started, where_measured = time.monotonic(), machine()
    results: list[Result] = []

    def measure(phases: Iterator[Phase]) -> None:
        for what, phase in phases:
            progress.print(f"{time.monotonic() - started:5.0f} s  measuring {what}", highlight=False, style="dim")
            found = phase()
            results.extend(found)
            for result in found:
                line = f"{result.group}: {result.name}  {_number(result.median)} {result.unit}"
                progress.print(f"{time.monotonic() - started:5.0f} s  {line}", highlight=False)

    measure(in_memory(plan))
    with broker(kind) as where:
        measure(on_a_broker(plan, where))
    judged = verdicts(results)
    console.print(narrow(table(results)))
    console.print(narrow(bars_table(judged)))
    for each in PEERS:
        if not each.installed:
            console.print(f"{each.name} was not measured: {each.package} is missing; install the extra [bench].")
    missed = [each.bar.name for each in judged if not each.met]
    console.print(
        f"{len(judged) - len(missed)} of {len(judged)} bars met" + (f"; missed: {'; '.join(missed)}" if missed else "")
    )
    processor, cores, load = (where_measured[name] for name in ("processor", "cores", "load_average"))
    console.print(f"{processor}, {cores} cores, load average {load[0]} at the start")
    whole = {
        "format": FORMAT,
        "quick": quick,
        "seconds": round(time.monotonic() - started, 1),
        "machine": where_measured,
        "versions": versions(kafka_home() if kind != "embedded" else None),
        "bars": {each.bar.name: each.to_dict() for each in judged},
        "results": [result.to_dict() for result in results],
    }
    write_report(report, whole, console)
    if strict and missed:
        sys.exit(1)


if __name__ == "__main__":
    run_program(bench)
