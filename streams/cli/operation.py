"""`tamiyo tail` and `tamiyo doctor`: commands for operators."""

import sys
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from tamiyo.schemas.display import printable, write_json
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import AsJson, Bootstrap, examples
from tamiyo.streams.process.interrupts import on_signals

if TYPE_CHECKING:
    from tamiyo.streams.admin.doctor import Finding

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
    app.command(
        rich_help_panel=options.OPERATE,
        epilog=examples("tamiyo doctor -b kafka.example.org:9092", "tamiyo doctor --json"),
    )(doctor)


def tail(
    topic: Annotated[
        str,
        typer.Argument(
            autocompletion=options.complete_dead_letter_topics,
            help="Topic of the catalogue, or its .dlq or .late topic.",
        ),
    ],
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


def doctor(as_json: AsJson = False, bootstrap: Bootstrap = None) -> None:
    """Check packages, settings, stores, the registry, the broker, its topics, the stages' groups and the learner.

    Exit status 1 on a problem; warnings leave it 0.
    """
    from tamiyo.streams.admin.doctor import examine

    found = []
    for finding in examine(lambda: options.kafka(bootstrap)):
        found.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        write_json([asdict(each) for each in found])
    if any(each.state == "problem" for each in found):
        raise typer.Exit(1)


def _show(finding: "Finding") -> None:
    styles = {"ok": "green", "warning": "yellow", "problem": "red"}
    line = Text.assemble((finding.state, styles[finding.state]), printable(f" {finding.what}: {finding.detail}"))
    console.print(line, soft_wrap=True)
    if finding.advice and finding.state != "ok":
        console.print(printable(f"    {finding.advice}"), highlight=False, soft_wrap=True, markup=False)
