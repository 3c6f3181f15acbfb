"""`tamiyo topics`: creates, lists, checks and grows the topics, and lists their permissions."""

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tamiyo.streams.cli import acls as acls_command
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import Bootstrap, examples

app = typer.Typer(
    no_args_is_help=True,
    help="Create, list, check and grow the topics.",
    epilog=examples("tamiyo topics create --partitions 12", "tamiyo topics list", "tamiyo topics check"),
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
    from tamiyo.streams.admin.topics import Topics

    findings = Topics(options.connected_kafka(bootstrap), options.names()).findings()
    problems = sum(each.state == "problem" for each in findings)
    if as_json:
        sys.stdout.write(json.dumps([asdict(each) for each in findings], indent=2) + "\n")
    else:
        for each in findings:
            _print(f"{'warning: ' if each.state == 'warning' else ''}{each.text}; {each.advice}")
        _print(f"{problems} problems" if problems else "all topics match the catalogue")
    if problems:
        raise typer.Exit(1)


def _print(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
