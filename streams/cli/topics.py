"""`tamiyo topics`: creates, lists, checks and grows the topics, and lists their permissions."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tamiyo.streams.cli import acls as acls_command
from tamiyo.streams.cli import options
from tamiyo.streams.cli.durations import seconds
from tamiyo.streams.cli.options import Bootstrap, examples

app = typer.Typer(
    no_args_is_help=True,
    help="Create, list, check and grow the topics.",
    epilog=examples(
        "tamiyo topics create --partitions 12", "tamiyo topics check", "tamiyo topics grow --partitions 24"
    ),
)
app.command("acls", epilog=acls_command.EPILOG)(acls_command.acls)

console = Console()

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("create", epilog=examples("tamiyo topics create --partitions 12", "tamiyo topics create"))
def create(
    partitions: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10_000,
            metavar="N",
            help="Partitions of every topic: a run has one number on all of them. [default: those of the topics that "
            "exist, else 4]",
        ),
    ] = None,
    replication: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10,
            metavar="N",
            help="Replicas of every partition. [default: 3, or one a broker if there are fewer]",
        ),
    ] = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Create every topic of the catalogue that is missing."""
    from tamiyo.streams.admin.topics import REPLICATION, Topics

    topics = Topics(options.connected_kafka(bootstrap), options.names())
    created = topics.create(partitions=partitions, replication=replication)
    for name in created:
        console.print(f"created {name}", highlight=False)
    console.print(f"{len(created)} created, the others existed" if created else "all topics existed")
    replicas = topics.replication(replication)
    if created and replicas < REPLICATION and not topics.embedded():
        brokers = topics.brokers()
        console.print(
            f"replication is {replicas}, the cluster has {brokers} broker{'s' if brokers > 1 else ''}: "
            f"with fewer than {REPLICATION} replicas the loss of a broker can lose records or stop the flow",
            highlight=False,
            soft_wrap=True,
        )


@app.command("list", epilog=examples("tamiyo topics list"))
def list_topics() -> None:
    """List the catalogue: topics, records, writers and readers. Needs no broker."""
    from tamiyo.schemas.topics import CATALOGUE

    table = Table()
    for column in ("topic", "record", "written by", "read by", "cleanup", "content"):
        table.add_column(column, overflow="fold")
    names = options.names()
    for topic in CATALOGUE:
        readers = ", ".join(topic.readers)
        table.add_row(
            names.full(topic.name), topic.record.__name__, topic.writer, readers, topic.cleanup, topic.description
        )
    console.print(table)


@app.command("check", epilog=examples("tamiyo topics check && echo fine", "tamiyo topics check --json"))
def check(as_json: AsJson = False, bootstrap: Bootstrap = None) -> None:
    """Compare the broker's topics with the catalogue. Exit status 1 on a problem; warnings leave it 0."""
    from tamiyo.streams.admin import growth
    from tamiyo.streams.admin.topics import Topics

    kafka, names = options.connected_kafka(bootstrap), options.names()
    findings = [*Topics(kafka, names).findings(), *growth.findings(kafka, names)]
    problems = sum(each.state == "problem" for each in findings)
    if as_json:
        sys.stdout.write(json.dumps([asdict(each) for each in findings], indent=2) + "\n")
    else:
        for each in findings:
            _print(f"{'warning: ' if each.state == 'warning' else ''}{each.text}; {each.advice}")
        _print(f"{problems} problems" if problems else "all topics match the catalogue")
    if problems:
        raise typer.Exit(1)


@app.command("grow", epilog=examples("tamiyo topics grow --partitions 24", "tamiyo topics grow --partitions 24 --yes"))
def grow(
    partitions: Annotated[
        int, typer.Option(min=1, max=10_000, metavar="N", help="Partitions of every topic from now on.")
    ],
    quiet: Annotated[
        float,
        typer.Option(
            parser=seconds,
            metavar="TIME",
            help="A run without telemetry for this long counts as over, though it has not ended: it was killed.",
        ),
    ] = "30m",  # type: ignore[assignment]
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Add partitions to every topic, and move what compacted topics keep to the partitions of its keys.

    Refused while runs are live. After an interruption, call it again with the same number: it goes on.
    """
    from tamiyo.streams.admin.growth import READERS_S, Growth

    growing = Growth(options.connected_kafka(bootstrap), options.names(), partitions, _progress(as_json))
    growing.check(quiet_s=quiet)
    if not yes:
        typer.confirm(
            f"Give every topic {partitions} partitions? This cannot be undone, and no run may start for about "
            f"{READERS_S + 15:.0f} s.",
            abort=True,
            err=True,
        )
    growing.run()
    if as_json:
        done = {"partitions": partitions, "grown": growing.grown, "moved": growing.moved, "removed": growing.removed}
        sys.stdout.write(json.dumps(done, indent=2) + "\n")
    else:
        _print(f"every topic has {partitions} partitions, and every key is on its own")


def _progress(as_json: bool) -> Callable[[str], None]:
    """Return what prints progress: on standard error where standard output is JSON."""
    return (lambda text: typer.echo(text, err=True)) if as_json else _print


def _print(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
