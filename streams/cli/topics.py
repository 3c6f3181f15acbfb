"""`tamiyo topics`: creates, lists and checks the topics, and lists their permissions."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tamiyo.streams.cli import acls as acls_command
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import Bootstrap, examples

app = typer.Typer(
    no_args_is_help=True,
    help="Create, list and check the topics.",
    epilog=examples("tamiyo topics create --partitions 12", "tamiyo topics list", "tamiyo topics check"),
)
app.command("acls", epilog=acls_command.EPILOG)(acls_command.acls)

console = Console()


@app.command("create", epilog=examples("tamiyo topics create --partitions 12 --replication 3"))
def create(
    partitions: Annotated[
        int,
        typer.Option(
            min=1, max=10_000, metavar="N", help="Partitions of every topic: a run has one number on all of them."
        ),
    ] = 4,
    replication: Annotated[int, typer.Option(min=1, max=10, metavar="N", help="Replicas of every partition.")] = 1,
    bootstrap: Bootstrap = None,
) -> None:
    """Create every topic of the catalogue that is missing."""
    from tamiyo.streams.admin.topics import Topics

    created = Topics(options.connected_kafka(bootstrap), options.names()).create(
        partitions=partitions, replication=replication
    )
    for name in created:
        console.print(f"created {name}", highlight=False)
    console.print(f"{len(created)} created, the others existed" if created else "all topics existed")


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


@app.command("check", epilog=examples("tamiyo topics check && echo fine"))
def check(bootstrap: Bootstrap = None) -> None:
    """Compare the broker's topics with the catalogue. Exit status 1 if they differ."""
    from tamiyo.streams.admin.topics import Topics

    problems = Topics(options.connected_kafka(bootstrap), options.names()).check()
    for problem in problems:
        console.print(problem, highlight=False, soft_wrap=True)
    console.print("all topics match the catalogue" if not problems else f"{len(problems)} problems")
    if problems:
        raise typer.Exit(1)
