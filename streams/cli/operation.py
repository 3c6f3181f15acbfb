"""`tamiyo tail` and `tamiyo doctor`: commands for operators."""

import sys
import threading
from typing import Annotated

import typer
from rich.console import Console

from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import Bootstrap, examples
from tamiyo.streams.process.interrupts import on_signals

console = Console()


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        rich_help_panel=options.OPERATE,
        epilog=examples(
            "tamiyo tail tamiyo.adaptation.decisions",
            "tamiyo tail tamiyo.rewards --no-follow --table",
            "tamiyo tail telemetry.cache.hit_rates.dlq -n 5",
        ),
    )(tail)
    app.command(rich_help_panel=options.OPERATE, epilog=examples("tamiyo doctor -b kafka.example.org:9092"))(doctor)


def tail(
    topic: Annotated[str, typer.Argument(help="Topic of the catalogue, or its .dlq or .late topic.")],
    beginning: Annotated[
        bool, typer.Option("--beginning/--end", help="Start at the beginning, or at the current end.")
    ] = True,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", "-f/-F", help="Wait for more records.")] = True,
    limit: Annotated[int | None, typer.Option("-n", min=1, metavar="N", help="Stop after N records.")] = None,
    run_id: Annotated[
        str | None, typer.Option(metavar="RUN_ID", callback=options.check_run_id, help="Only records of this run.")
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="One row a record instead of JSON.")] = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Print the records of a topic, decoded, one JSON object a line."""
    from tamiyo.streams.admin.topic_tail import catalogue_name
    from tamiyo.streams.admin.topic_tail import follow as follow_topic

    stop = threading.Event()
    on_signals(stop.set)
    names = options.names()
    catalogue_name(topic, names)  # a wrong name is reported without waiting for the broker
    found = follow_topic(
        topic,
        options.connected_kafka(bootstrap),
        names,
        beginning=beginning,
        forever=follow,
        limit=limit,
        run_id=run_id,
        stopped=stop.is_set,
    )
    for each in found:
        sys.stdout.write((each.row() if table else each.json()) + "\n")
        sys.stdout.flush()


def doctor(bootstrap: Bootstrap = None) -> None:
    """Check versions, schemas, the store, the registry, the broker and its topics. Exit status 1 on a problem."""
    from tamiyo.schemas.client.registry import RegistrySettings
    from tamiyo.streams.admin.doctor import examine
    from tamiyo.streams.settings import StoreSettings

    labels = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "problem": "[red]problem[/]"}
    failed = False
    for finding in examine(options.kafka(bootstrap), options.names(), StoreSettings(), RegistrySettings()):
        failed |= finding.state == "problem"
        console.print(f"{labels[finding.state]} {finding.what}: {finding.detail}", highlight=False, soft_wrap=True)
        if finding.advice and finding.state != "ok":
            console.print(f"    {finding.advice}", highlight=False, soft_wrap=True, markup=False)
    if failed:
        raise typer.Exit(1)
