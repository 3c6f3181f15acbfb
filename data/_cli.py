"""`tamiyo export`: topics as files for researchers.

A plug-in of the `tamiyo` command, which loads it through the entry points `tamiyo.commands`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tamiyo.schemas.display import narrow, printable, write_json
from tamiyo.schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

    from tamiyo.data._exporting import Exported, Exporter
    from tamiyo.data._sources import Choice, Source
    from tamiyo.schemas.topics import Topic

INTERRUPTED = 130
PANEL = "Record and replay"
FORMATS = ("parquet", "csv", "jsonl")

app = typer.Typer()


def examples(*commands: str) -> str:
    """Return the epilog of a command's help, as `tamiyo.streams.cli` writes it, which loads this module."""
    return "\n\n".join(["Examples:", *(f"- `{each}`" for each in commands)])


def complete_topics(incomplete: str) -> list[str]:
    """Return the topics that begin so, and their last words that do."""
    from tamiyo.data._names import ALL
    from tamiyo.schemas.topics import BY_NAME

    words = [ALL, *(name.rpartition(".")[2] for name in BY_NAME), *BY_NAME]
    return [each for each in words if each.startswith(incomplete)]


def check_run_id(param: typer.CallbackParam, value: list[str] | None) -> Any:
    """Return the ids of runs, as `tamiyo.streams.cli.options.check_run_id`."""
    from tamiyo.streams.cli import options

    return options.check_run_id(param, value)


def check_format(value: str) -> str:
    """Return a format's name; raises BadParameter for any other."""
    if value not in FORMATS:
        raise typer.BadParameter(f"expected {', '.join(FORMATS)}, got {value!r}")
    return value


TopicArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TOPIC...",
        autocompletion=complete_topics,
        help="Topics of the catalogue, their last words (`decisions`, `health.windows`), or `all`.",
        show_default=False,
    ),
]
FormatOption = Annotated[
    str, typer.Option("--format", callback=check_format, metavar="|".join(FORMATS), help="Format of the files.")
]
OutOption = Annotated[
    Path, typer.Option("--out", metavar="FOLDER", help="Folder for the files; it is made, or must be empty.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace files in the folder; files of other names stay.")
]
JoinedOption = Annotated[
    bool | None,
    typer.Option(
        "--joined/--no-joined",
        help="Write `decisions`: one row a decision, with its kernel, outcome, reward and policy. "
        "[default: with the topic of decisions]",
        show_default=False,
    ),
]
RunOption = Annotated[
    list[str] | None,
    typer.Option("--run", metavar="RUN_ID", callback=check_run_id, help="Only this run; repeat for several."),
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Messages from this time on: a duration back such as 30d or 12h, or e.g. 2026-05-01T10:00 (UTC); "
        "topologies, kernels, policies and orders whole.",
    ),
]
UntilOption = Annotated[str | None, typer.Option(metavar="TIME", help="Messages before this time.")]
RecordingOption = Annotated[
    Path | None, typer.Option("--recording", metavar="FOLDER", help="Read a recording instead of topics.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]
BootstrapOption = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        "-b",
        metavar="HOST:PORT",
        help="Kafka broker; several separated by commas. [env: TAMIYO_KAFKA_BOOTSTRAP_SERVERS]",
    ),
]


@app.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "tamiyo export decisions --since 30d",
        "tamiyo export all --recording recordings/monday --out monday",
        "tamiyo export rewards health.windows --run mnist1d-0 --format csv",
        "tamiyo export --joined --out paper",
    ),
)
def export(
    topic: TopicArguments = None,
    file_format: FormatOption = "parquet",
    out: OutOption = Path("export"),
    overwrite: OverwriteOption = False,
    joined: JoinedOption = None,
    run: RunOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    recording: RecordingOption = None,
    as_json: JsonOption = False,
    bootstrap: BootstrapOption = None,
) -> None:
    """Write topics as typed tables: one file a topic, and the decisions joined with their results.

    Columnar records are unpacked: one row for each layer, or each layer and metric. `TOPIC.model` has the metrics of
    the whole model. Ctrl-C keeps the files that are complete.
    """
    from tamiyo.data._exporting import Exporter, prepare_folder
    from tamiyo.data._files import Format
    from tamiyo.schemas.topics import DECISIONS
    from tamiyo.streams.cli import options
    from tamiyo.streams.process.interrupts import stoppable

    topics = _topics(topic or [])
    join = DECISIONS in topics if joined is None else joined
    if not topics and not join:
        raise ConfigurationError("name the topics to export, or `all`, or --joined; `tamiyo topics list` names them")
    choice = _choice(run, since, until)
    console = options.narrator(as_json)
    source = _source(recording, bootstrap)
    try:
        if recording is not None and "all" in (topic or []):
            topics = tuple(each for each in topics if source.has(each))
        prepare_folder(out, overwrite=overwrite)
        with stoppable() as stop:
            exporter = Exporter(source, out, format=Format(file_format), choice=choice, stopped=stop.is_set)
            result = _with_progress(exporter, topics, join, console)
    finally:
        source.close()
    if as_json:
        write_json(_summary(result, out, file_format))
    else:
        _print(result, out, console)
    if not result.complete:
        console.print("stopped; the files above are complete", style="yellow")
        raise typer.Exit(INTERRUPTED)


def _topics(texts: list[str]) -> "tuple[Topic, ...]":
    from tamiyo.data._names import find_topics
    from tamiyo.streams.cli import options

    return find_topics(texts, options.names().prefix)


def _choice(run: list[str] | None, since: str | None, until: str | None) -> "Choice":
    from tamiyo.data._sources import Choice
    from tamiyo.streams.cli.options.durations import time_ms

    first, last = time_ms("--since", since), time_ms("--until", until)
    if first is not None and last is not None and first >= last:
        raise ConfigurationError(f"--since {since} does not lie before --until {until}")
    return Choice(tuple(run or ()), first, last)


def _source(recording: Path | None, bootstrap: str | None) -> "Source":
    from tamiyo.data._sources import RecordingSource, TopicSource
    from tamiyo.streams.cli import options

    if recording is not None and bootstrap is not None:
        raise ConfigurationError("--recording and --bootstrap-servers exclude each other: name one source")
    if recording is not None:
        return RecordingSource(recording)
    return TopicSource(options.connected_kafka(bootstrap), options.names())


def _with_progress(exporter: "Exporter", topics: "tuple[Topic, ...]", join: bool, console: "Console") -> "Exported":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = (TextColumn("exporting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bar, console=console, transient=True) as progress:
        task = progress.add_task("exporting", total=None)
        return exporter.run(
            topics,
            join=join,
            on_plan=lambda total: progress.update(task, total=total),
            on_progress=lambda count: progress.advance(task, count),
        )


def _summary(result: "Exported", out: Path, file_format: str) -> dict[str, Any]:
    return {
        "folder": str(out),
        "format": file_format,
        "complete": result.complete,
        "files": [
            {"file": each.path.name, "rows": each.rows, "bytes": each.path.stat().st_size} for each in result.files
        ],
        "topics": {
            name: {
                "messages": each.messages,
                "undecodable": each.undecodable,
                "removals": each.removals,
                "first_problem": each.first_problem or None,
            }
            for name, each in result.counts.items()
        },
        "not_recorded": result.not_recorded,
    }


def _print(result: "Exported", out: Path, console: "Console") -> None:
    from rich.table import Column, Table

    table = Table(Column("file", overflow="fold"), Column("rows", justify="right"), Column("MB", justify="right"))
    for each in result.files:
        table.add_row(printable(each.path.name), f"{each.rows:,}", f"{each.path.stat().st_size / 1e6:,.2f}")
    if result.files:
        console.print(narrow(table))
    plain: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False}
    console.print(f"{len(result.files)} files in {printable(str(out))}", **plain)
    for name, counts in result.counts.items():
        if counts.undecodable:
            console.print(
                f"{name}: {counts.undecodable:,} of {counts.messages:,} messages are no such record and are left out; "
                f"the first: {printable(counts.first_problem)}",
                style="yellow", **plain,
            )  # fmt: skip
    if result.not_recorded:
        missing = ", ".join(result.not_recorded)
        console.print(f"not in the recording, so null in the joined table: {missing}", style="yellow", **plain)
