"""`tamiyo plan`: sizes an installation for a number of runs."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from tamiyo.schemas.display import narrow, write_json
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import AsJson, examples

if TYPE_CHECKING:
    from tamiyo.streams.admin.plan import Sizing

console = Console()


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        rich_help_panel=options.OPERATE,
        epilog=examples(
            "tamiyo plan --runs 1000 --layers 50 --interval 10",
            "tamiyo plan --runs 100000 --layers 50 --interval 60 --retention-days 1",
            "tamiyo plan --runs 100000 --layers 50 --interval 60 --json",
        ),
    )(plan)


def plan(
    runs: Annotated[int, typer.Option(min=1, max=10_000_000, metavar="N", help="Runs that train at the same time.")],
    layers: Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="Watched layers of each run's network.")],
    interval: Annotated[
        float, typer.Option(min=0.001, metavar="S", help="Seconds between two sampled steps of a run.")
    ],
    steps_window: Annotated[
        int, typer.Option(min=1, metavar="N", help="Sampled steps in a window: its width / the interval.")
    ] = 2,
    replication: Annotated[int, typer.Option(min=1, max=10, metavar="N", help="Replicas of every partition.")] = 3,
    retention_days: Annotated[
        float | None, typer.Option(min=0.01, metavar="D", help="Days that records are kept. [default: the catalogue's]")
    ] = None,
    utilisation: Annotated[
        float, typer.Option(min=0.05, max=1.0, metavar="SHARE", help="Share of a core that may be busy in the mean.")
    ] = 0.7,
    worker_memory: Annotated[float, typer.Option(min=0.1, metavar="GIB", help="Memory of a worker.")] = 1.0,
    broker_cores: Annotated[int, typer.Option(min=1, metavar="N", help="Cores of a broker.")] = 8,
    broker_rate: Annotated[float, typer.Option(min=1.0, metavar="MB/S", help="What a broker can write.")] = 100.0,
    broker_disk: Annotated[float, typer.Option(min=0.01, metavar="TB", help="What a broker can store.")] = 4.0,
    broker_partitions: Annotated[
        int, typer.Option(min=100, metavar="N", help="Replicas of partitions that a broker can host.")
    ] = 4_000,
    costs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Unit costs of `make scale`. [default: those of the release]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Size an installation: workers, partitions, brokers and bytes a day, from measured unit costs. Needs no broker."""
    from tamiyo.streams.admin.plan import COSTS, Demand, UnitCosts, assumptions, size

    unit = UnitCosts.load(costs or COSTS)
    demand = Demand(
        runs=runs,
        layers=layers,
        interval_s=interval,
        steps_per_window=steps_window,
        replication=replication,
        retention_days=retention_days,
        utilisation=utilisation,
        worker_memory_gib=worker_memory,
        broker_cores=broker_cores,
        broker_mb_s=broker_rate,
        broker_disk_tb=broker_disk,
        broker_partitions=broker_partitions,
    )
    sizing = size(demand, unit)
    if as_json:
        write_json({**asdict(sizing), "measured": unit.measured})
        return
    _show(sizing)
    for each in assumptions(sizing, unit):
        console.print(f"- {each}", highlight=False, soft_wrap=True)


def _show(sizing: "Sizing") -> None:
    from tamiyo.streams.admin.plan import readable_bytes

    demand = sizing.demand
    table = Table("", "", "because of", title=f"{demand.runs:,} runs of {demand.layers:,} layers", title_justify="left")
    table.add_row("sampled steps", f"{sizing.steps_per_s:,.1f} a second", f"one every {demand.interval_s:g} s a run")
    table.add_row("telemetry records", f"{sizing.records_per_s:,.1f} a second", "")
    table.add_row("layer-signals", f"{sizing.layer_signals_per_s:,.0f} a second", "")
    table.add_row(
        "windows, decisions", f"{sizing.windows_per_s:,.1f} a second", f"{demand.steps_per_window} steps each"
    )
    table.add_section()
    for stage, cores in sizing.stage_cores.items():
        table.add_row(f"busy cores, {stage}", f"{cores:,.2f}", "")
    table.add_row("busy cores, learner", f"{sizing.learner_cores:,.2f}", "")
    table.add_section()
    table.add_row("workers, a core each", f"{sizing.workers:,}", _reason(sizing.workers_for))
    table.add_row("memory of a worker", readable_bytes(sizing.worker_memory_bytes), "")
    table.add_row("learners", f"{sizing.learners:,}", "experiences" if sizing.learners > 1 else "")
    table.add_row("partitions of every topic", f"{sizing.partitions:,}", "twice the workers, 4 at least")
    table.add_row("brokers", f"{sizing.brokers:,}", _reason(sizing.brokers_for))
    console.print(narrow(table))
    topics = Table("topic", "bytes a day", "kept", "stored")
    for each in sizing.topics:
        kept = "compacted" if each.retention_days is None else f"{each.retention_days:g} days"
        topics.add_row(each.name, readable_bytes(each.bytes_per_day), kept, readable_bytes(each.stored_bytes))
    topics.add_section()
    topics.add_row(
        "all, one replica",
        readable_bytes(sizing.bytes_per_day),
        "",
        readable_bytes(sizing.stored_bytes / demand.replication),
    )
    topics.add_row(f"all, {demand.replication} replicas", "", "", readable_bytes(sizing.stored_bytes))
    console.print(narrow(topics))


def _reason(needs: dict[str, int]) -> str:
    """Return what needs the most, with what the others would need."""
    ordered = sorted(needs.items(), key=lambda each: -each[1])
    return ", ".join(f"{name} {count:,}" for name, count in ordered)
