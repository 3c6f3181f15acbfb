"""`make scale`: from 1 to 1,000 runs on one worker, from 1 to 2,000 layers a frame, and two workers against one.

On a real Kafka from KAFKA_HOME. A cell's costs are processor seconds of the worker processes; the memory of a run is
the growth of a worker's memory with all runs of a cell open. The report is written after every cell, and a report that
is not complete is continued. `--costs` writes the unit costs that `tamiyo plan` multiplies.
"""

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console

from tamiyo.evaluation.bench.kafka import Broker, broker
from tamiyo.evaluation.bench.learner import updates
from tamiyo.evaluation.common import stage_bench
from tamiyo.evaluation.common.command_line import program
from tamiyo.evaluation.common.measure import command, machine, versions
from tamiyo.evaluation.common.program import begin
from tamiyo.evaluation.common.report import STDOUT, require_folder, write_report
from tamiyo.evaluation.common.simulated_runs import Load
from tamiyo.evaluation.scale.cells import FULL, QUICK, Sizes, cells
from tamiyo.evaluation.scale.costs import unit_costs
from tamiyo.evaluation.scale.flow import measure, pinned, plan_cores
from tamiyo.evaluation.scale.plot import draw
from tamiyo.evaluation.scale.results import signal_us, summary
from tamiyo.schemas.files import write_atomically
from tamiyo.streams.process.logs import configure
from tamiyo.streams.settings import LogSettings

FORMAT = 1


def learner_ms(layers: int) -> float:
    """Return the milliseconds of the learner for each experience of a network of `layers` layers."""
    load = Load(runs=4, layers=layers, frames=20)
    with TemporaryDirectory(prefix="tamiyo-scale-") as folder:
        bench = stage_bench.Bench(load, f"file://{folder}")
        seen = stage_bench.experiences(stage_bench.stage_inputs(load, bench), bench)
    update, guard = updates(seen, repeats=1)
    return (update.median + guard.median) / int(update.extra["fresh"])


def started(report: Path | None, quick: bool, where_measured: dict[str, Any], home: Path) -> dict[str, Any]:
    """Return the report so far: an unfinished one of the same sizes, else an empty one."""
    empty = {
        "format": FORMAT,
        "command": command("tamiyo.evaluation.scale", sys.argv[1:]),
        "complete": False,
        "quick": quick,
        "machine": where_measured,
        "versions": versions(home),
        "cells": {},
        "learner_ms": {},
    }
    if report is None or not report.exists():
        return empty
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    same = all(found.get(name) == empty[name] for name in ("format", "quick", "versions"))
    return found if same and not found["complete"] else empty


def save(report: Path | None, result: dict[str, Any]) -> None:
    """Write the report so far, unless it goes to standard output."""
    if report is not None and report != STDOUT:
        write_atomically(report, json.dumps(result, indent=1) + "\n")


def measure_all(sizes: Sizes, result: dict[str, Any], report: Path | None, console: Console) -> None:
    """Measure every cell that is not in `result` yet."""
    began = time.monotonic()

    def note(words: str) -> None:
        console.print(f"{time.monotonic() - began:5.0f} s  {words}", highlight=False)

    for layers in sizes.learner:
        if f"{layers}" not in result["learner_ms"]:
            result["learner_ms"][f"{layers}"] = learner_ms(layers)
            note(f"learner, {layers} layers: {result['learner_ms'][f'{layers}']:.1f} ms an experience")
            save(report, result)
    workers, rest = plan_cores(2)
    wanted = [cell for cell in cells(sizes, len(workers)) if cell.name not in result["cells"]]
    with ExitStack() as stack:
        where: Broker | None = None
        for number, cell in enumerate(wanted, start=1):
            if where is None:
                stack.enter_context(pinned(rest))  # the broker, and this program as the load
                where = stack.enter_context(broker("local"))
            note(f"cell {number} of {len(wanted)}: {cell.name}, {cell.load.layer_signals:,} layer-signals")
            result["cells"][cell.name] = measure(where, cell)
            note(f"{cell.name}: {signal_us(result['cells'][cell.name]):.1f} us a layer-signal")
            save(report, result)


def pinning(workers: int = 2) -> str:
    """Return in words what is pinned where."""
    cores, rest = plan_cores(workers)
    return f"workers on cores {cores}, one each; broker and load on {rest}"


def show(result: dict[str, Any], console: Console) -> None:
    """Print the findings."""
    found = result["summary"]
    for count, each in found["runs"].items():
        growth = f"memory +{each['growth_bytes'] / 1e6:,.0f} MB while they are open"
        console.print(f"{count:>5} runs: {each['signal_us']:.1f} us a layer-signal, {growth}", highlight=False)
    memory = result["costs"]["memory_bytes"]
    console.print(
        f"memory: {memory['worker'] / 1e6:,.0f} MB and for each run {memory['run'] / 1e3:,.1f} kB + "
        f"{memory['layer'] / 1e3:,.1f} kB a layer",
        highlight=False,
    )
    console.print(f"dearest / cheapest: {found['runs_flatness']:.2f}")
    for count, each in found["layers"].items():
        console.print(
            f"{count:>5} layers: {each['signal_us']:.1f} us a layer-signal, {each['step_us']:,.0f} us a sampled step"
        )
    if "two_workers" in found:
        both = found["two_workers"]
        console.print(
            f"two workers: {both['wall']:.2f} times one in wall time, {both['processor']:.2f} in processor time "
            f"({result['pinned']})"
        )


app = program()


@app.command(
    epilog="Examples: `make scale` · `make scale ARGS='--quick'` · "
    "`make scale ARGS='--report evaluation/results/scale.json --costs streams/admin/unit_costs.json'`"
)
def main(
    quick: Annotated[bool, typer.Option("--quick", help="Few runs and layers, to try the program")] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON file of the results, written after every cell; continued if incomplete. - is standard output, "
            "at the end, and nothing else",
        ),
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the figure into this file: .png or .svg")] = None,
    costs: Annotated[Path | None, typer.Option(help="Write the unit costs of `tamiyo plan` to this file")] = None,
) -> None:
    """Measure how cost and memory grow with runs, layers and workers."""
    console, home = begin(report)
    for option, path in (("--figure", figure), ("--costs", costs)):
        require_folder(path, option)
    configure(LogSettings(level="WARNING"))
    sizes = QUICK if quick else FULL
    result = started(report, quick, machine(), home)
    measure_all(sizes, result, report, console)
    result["pinned"] = pinning()
    result["summary"] = summary(result["cells"])
    result["costs"] = unit_costs(result["cells"], result["learner_ms"])
    result["complete"] = True
    show(result, console)
    write_report(report, result, console)
    if figure is not None:
        draw(result, figure)
    if costs is not None:
        origin = {name: result[name] for name in ("command", "machine", "versions")}
        costs.write_text(json.dumps({**result["costs"], "measured": origin}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
