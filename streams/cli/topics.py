"""`tamiyo topics`: create, list and check the topics, and say what may be done to them."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tamiyo.streams.cli import acls as acls_command
from tamiyo.streams.cli import options as settings_of
from tamiyo.streams.cli.options import Bootstrap

app = typer.Typer(
    no_args_is_help=True,
    help="Create, list and check the topics.",
    epilog="Examples: `tamiyo topics create --partitions 12` · `tamiyo topics list` · `tamiyo topics check`",
)
app.command("acls", epilog=acls_command.EPILOG)(acls_command.acls)

console = Console()


@app.command("create", epilog="Example: `tamiyo topics create --partitions 12 --replication 3`")
def create(
    partitions: Annotated[int, typer.Option(min=1, max=10_000, help="Of every topic: a run keeps its number")] = 4,
    replication: Annotated[int, typer.Option(min=1, max=10, help="Copies of every partition")] = 1,
    bootstrap: Bootstrap = None,
) -> None:
    """Create every topic of the catalogue that is missing."""
    from tamiyo.streams.admin.topics import Topics

    made = Topics(settings_of.connected_kafka(bootstrap), settings_of.names()).create(
        partitions=partitions, replication=replication
    )
    for name in made:
        console.print(f"created {name}", highlight=False)
    console.print(f"{len(made)} created, the rest was there" if made else "all topics were there")


@app.command("list", epilog="Example: `tamiyo topics list`")
def list_topics() -> None:
    """List the catalogue: topics, records, writers and readers. Needs no broker."""
    from tamiyo.schemas.topics import CATALOGUE

    table = Table()
    for column in ("topic", "record", "written by", "read by", "kept", "what it says"):
        table.add_column(column, overflow="fold")
    names = settings_of.names()
    for topic in CATALOGUE:
        readers = ", ".join(topic.readers)
        table.add_row(
            names.full(topic.name), topic.record.__name__, topic.writer, readers, topic.cleanup, topic.description
        )
    console.print(table)


@app.command("check", epilog="Example: `tamiyo topics check && echo fine`")
def check(bootstrap: Bootstrap = None) -> None:
    """Compare the broker's topics with the catalogue; exit 1 where they differ."""
    from tamiyo.streams.admin.topics import Topics

    problems = Topics(settings_of.connected_kafka(bootstrap), settings_of.names()).check()
    for problem in problems:
        console.print(problem, highlight=False, soft_wrap=True)
    console.print("topics are as the catalogue says" if not problems else f"{len(problems)} problems")
    if problems:
        raise typer.Exit(1)
