"""`tamiyo diff`: compares the records of two runs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from tamiyo.schemas.display import narrow, printable, write_json
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import AsJson, Bootstrap, Runs, examples
from tamiyo.streams.cli.record import topic_names

if TYPE_CHECKING:
    from tamiyo.streams.replay.compare import Difference

console = Console()


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        rich_help_panel=options.REPLAY,
        epilog=examples(
            "tamiyo diff one judged",
            "tamiyo diff topics: topics:replay1. --run mnist1d-0",
            "tamiyo diff old new --ignore explanation",
        ),
    )(diff)


def diff(
    left: Annotated[str, typer.Argument(help="A recording's folder, or topics:PREFIX (topics: for no prefix).")],
    right: Annotated[str, typer.Argument(help="The other recording or prefix.")],
    topic: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            autocompletion=options.complete_topics,
            help="Topic of the catalogue; repeat for several. [default: windows, graphs and decisions]",
        ),
    ] = None,
    run: Runs = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="Field that may differ, e.g. explanation; repeat for several."),
    ] = None,
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Compare two runs byte by byte, record by record under each id. Exit status 1 if they differ."""
    from tamiyo.schemas.topics import BY_NAME
    from tamiyo.streams.replay.compare import COMPARED, compare, side

    chosen = [BY_NAME[name] for name in topic_names(topic)] if topic else list(COMPARED)
    one, other = (side(text, lambda: options.connected_kafka(bootstrap)) for text in (left, right))
    with Progress(
        TextColumn("{task.description}"),
        TextColumn("{task.completed:,} messages"),
        console=options.narrator(as_json),
        transient=True,
    ) as progress:
        task = progress.add_task("comparing", total=None)
        found = compare(
            one,
            other,
            chosen,
            runs=run or (),
            ignore=ignore or (),
            progress=lambda count: progress.advance(task, count),
        )
    if as_json:
        write_json([{**asdict(each), "equal": each.equal} for each in found])
    else:
        console.print(_table(found))
        for each in found:
            if each.first is not None:
                at = each.first
                where = f"{each.topic} {at.identity} of run {at.run_id}"
                _print(f"{where} differs first in {at.field}: {at.left} and {at.right}")
    if not all(each.equal for each in found):
        raise typer.Exit(1)
    if not any(each.same for each in found):
        raise ConfigurationError("neither side holds a record to compare")
    if not as_json:
        _print(f"the same in every field but {', '.join(ignore)}" if ignore else "the same, to the byte")


def _table(found: "Sequence[Difference]") -> Table:
    table = Table()
    table.add_column("topic", overflow="fold")
    for column in ("same", "differ", "only left", "only right", "contradictions"):
        table.add_column(column, justify="right")
    for each in found:
        numbers = (each.same, each.differ, each.left_only, each.right_only, each.contradictions)
        table.add_row(each.topic, *(f"{number:,}" for number in numbers))
    return narrow(table)


def _print(text: str) -> None:
    console.print(printable(text), highlight=False, soft_wrap=True, markup=False)
