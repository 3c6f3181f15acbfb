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
    from collections.abc import Iterator

    from tamiyo.streams.admin.doctor import Finding
    from tamiyo.streams.admin.topic_tail import TopicLine

console = Console()


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        rich_help_panel=options.OPERATE,
        epilog=examples(
            "tamiyo tail tamiyo.adaptation.decisions",
            "tamiyo tail tamiyo.adaptation.decisions --run mnist1d-0 --table",
            "tamiyo tail tamiyo.rewards --last 20 --no-follow --table",
            "tamiyo tail tamiyo.adaptation.outcomes --since 30m",
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
        str | None,
        typer.Option("--run", metavar="RUN_ID", callback=options.check_run_id, help="Only records of this run."),
    ] = None,
    former_run_id: Annotated[
        str | None, typer.Option("--run-id", metavar="RUN_ID", callback=options.check_run_id, hidden=True)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Only records from this time on: a duration back such as 30m, or 2026-05-01T10:00 (UTC).",
        ),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option(
            min=1, max=1_000_000, metavar="N", help="Start with the newest N records, in the order of their times."
        ),
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="A table with a header instead of JSON.")] = False,
    short: Annotated[
        bool | None,
        typer.Option(
            "--short/--full",
            help="Ids of 8 characters or more, or whole.",
            show_default="short in tables, full in JSON",
        ),
    ] = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Print the records of a topic, decoded: one JSON object a line, or a table."""
    from tamiyo.schemas.errors import ConfigurationError
    from tamiyo.streams.admin.topic_tail import catalogue_name
    from tamiyo.streams.admin.topic_tail import follow as follow_topic
    from tamiyo.streams.cli.options.durations import time_ms

    names = options.names()
    bare = catalogue_name(topic, names)  # wrong options are reported without waiting for the broker
    since_ms = time_ms("--since", since)
    if not beginning and (since is not None or last is not None):
        raise ConfigurationError("--end starts after the newest record: leave it out, or --since and --last")
    if run_id is not None and former_run_id is not None:
        raise ConfigurationError("give the run with --run alone; --run-id is its former name")
    stop = threading.Event()
    on_signals(stop.set)
    found = follow_topic(
        topic,
        options.connected_kafka(bootstrap),
        names,
        beginning=beginning,
        forever=follow,
        limit=limit,
        run_id=run_id if former_run_id is None else former_run_id,
        since_ms=since_ms,
        last=last,
        stopped=stop.is_set,
    )
    if table:
        _print_table(found, bare, full_ids=short is False)
    else:
        _print_json(found, short=bool(short))


def _print_json(lines: "Iterator[TopicLine]", *, short: bool) -> None:
    from tamiyo.streams.admin.topic_table import ShortIds

    ids = ShortIds() if short else None
    for each in lines:
        sys.stdout.write(each.json(ids.shortened if ids is not None else None) + "\n")
        sys.stdout.flush()


def _print_table(lines: "Iterator[TopicLine]", bare: str, *, full_ids: bool) -> None:
    from tamiyo.streams.admin.topic_table import WIDE, TopicTable

    out = Console()
    # What reads a file or a pipe needs every column, and has no lines that could be too long.
    width = out.width if out.is_terminal else WIDE
    page = max(10, out.height - 2) if out.is_terminal else None
    shown = TopicTable(bare, width, cut=out.is_terminal, full_ids=full_ids, page=page)
    for each in lines:
        for line in shown.lines(each):
            if out.is_terminal:
                out.print(line, soft_wrap=True)
            else:
                sys.stdout.write(line.plain + "\n")
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
