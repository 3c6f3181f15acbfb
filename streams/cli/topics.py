"""`tamiyo topics`: creates, lists, checks and grows the topics, and lists their permissions."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tamiyo.schemas.display import narrow, write_json
from tamiyo.streams.cli import acls as acls_command
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import AsJson, Bootstrap, examples
from tamiyo.streams.cli.options.durations import seconds

app = typer.Typer(
    no_args_is_help=True,
    help="Create, list, check and grow the topics.",
    epilog=examples(
        "tamiyo topics create --partitions 12", "tamiyo topics check", "tamiyo topics grow --partitions 24"
    ),
)
app.command("acls", epilog=acls_command.EPILOG)(acls_command.acls)

console = Console()


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
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Create every topic of the catalogue that is missing."""
    from tamiyo.streams.admin.topic_findings import REPLICATION
    from tamiyo.streams.admin.topics import Topics

    topics = Topics(options.connected_kafka(bootstrap), options.names())
    with options.resumable("give the command again: it creates what is missing"):
        created = topics.create(partitions=partitions, replication=replication)
    if as_json:
        write_json({"created": created, "replication": topics.replication(replication)})
        return
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


@app.command("list", epilog=examples("tamiyo topics list", "tamiyo topics list --json"))
def list_topics(as_json: AsJson = False) -> None:
    """List the catalogue: topics, records, writers and readers. Needs no broker."""
    from tamiyo.schemas.topics import CATALOGUE

    names = options.names()
    rows = [
        {
            "topic": names.full(topic.name),
            "record": topic.record.__name__,
            "written_by": topic.writer,
            "read_by": list(topic.readers),
            "cleanup": topic.cleanup,
            "retention_ms": topic.retention_ms if topic.cleanup == "delete" else None,
            "content": topic.description,
        }
        for topic in CATALOGUE
    ]
    if as_json:
        write_json(rows)
    else:
        console.print(_catalogue(rows))


@app.command("check", epilog=examples("tamiyo topics check && echo fine", "tamiyo topics check --json"))
def check(as_json: AsJson = False, bootstrap: Bootstrap = None) -> None:
    """Compare the broker's topics with the catalogue. Exit status 1 on a problem; warnings leave it 0."""
    from tamiyo.streams.admin import growth
    from tamiyo.streams.admin.topics import Topics

    kafka, names = options.connected_kafka(bootstrap), options.names()
    findings = [*Topics(kafka, names).findings(), *growth.findings(kafka, names)]
    problems = sum(each.state == "problem" for each in findings)
    if as_json:
        write_json([asdict(each) for each in findings])
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
    with options.resumable(f"give the command again with --partitions {partitions}, before any run starts: it goes on"):
        growing.run()
    if as_json:
        done = {"partitions": partitions, "grown": growing.grown, "moved": growing.moved, "removed": growing.removed}
        write_json(done)
    else:
        _print(f"every topic has {partitions} partitions, and every key is on its own")


def _catalogue(rows: list[dict[str, Any]]) -> Table:
    """Return the catalogue as a table of 80 columns: only a topic's name with a long prefix is folded."""
    table = Table(leading=1)
    table.add_column("topic, content", overflow="fold", min_width=38, max_width=60)
    for column in ("record, cleanup", "written by", "read by"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            f"{row['topic']}\n{row['content']}",
            f"{row['record']}\n{row['cleanup']}",
            row["written_by"],
            ", ".join(row["read_by"]),
        )
    return narrow(table)


def _progress(as_json: bool) -> Callable[[str], None]:
    """Return what prints progress: on standard error where standard output is JSON."""
    return (lambda text: typer.echo(text, err=True)) if as_json else _print


def _print(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
