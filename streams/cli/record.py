"""`tamiyo record`, and the selection of messages that it shares with `tamiyo replay`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tamiyo.schemas.display import write_json
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import AsJson, Bootstrap, Runs, TopicOption, examples
from tamiyo.streams.cli.options.durations import time_ms
from tamiyo.streams.process.interrupts import stop_flag

if TYPE_CHECKING:
    from tamiyo.streams.recording.recording import Manifest

Since = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Messages from this time on, e.g. 2026-05-01T10:00 (UTC), or a duration back such as 30m; topologies, "
        "policies and orders whole.",
    ),
]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Messages before this time.")]
Offsets = Annotated[
    list[str] | None,
    typer.Option(
        metavar="RANGE",
        help="Offsets of one partition: TOPIC:PARTITION=FIRST-LAST, either end optional; repeat for several.",
    ),
]
OFFSETS = re.compile(r"(?P<place>[\w.\-]+:\d{1,6})=(?P<first>\d{0,18})-(?P<last>\d{0,18})")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        rich_help_panel=options.REPLAY,
        epilog=examples(
            "tamiyo record recordings/monday --since 2026-05-01",
            "tamiyo record one --run mnist1d-0",
            "`tamiyo record live --follow` (until Ctrl-C)",
        ),
    )(record)


def record(
    folder: Annotated[
        Path,
        typer.Argument(
            callback=options.check_folder, help="A new folder, or one with an unfinished recording to continue."
        ),
    ],
    topic: TopicOption = None,
    run: Runs = None,
    since: Since = None,
    until: Until = None,
    offsets: Offsets = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue with new messages until Ctrl-C.")] = False,
    checkpoints: Annotated[
        bool,
        typer.Option("--checkpoints/--no-checkpoints", help="Copy the policies that made the decisions."),
    ] = True,
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Record topics, whole or a selection, into Avro files. An interrupted recording can be continued."""
    from tamiyo.streams.settings import StoreSettings

    selected = selection(topic, run, since, until, offsets)
    stop = stop_flag()
    url = StoreSettings().checkpoints if checkpoints else None
    kafka = options.connected_kafka(bootstrap)
    out = options.narrator(as_json)
    manifest = record_to(folder, kafka, options.names(), selected, stop, out, follow=follow, checkpoint_url=url)
    if as_json:
        write_json(
            {
                "folder": str(folder),
                "complete": manifest.complete,
                "messages": sum(part.messages for part in manifest.parts),
                "files": len(manifest.parts),
                "bytes": sum(part.size_bytes for part in manifest.parts),
                "policy_versions_missing": manifest.policy_versions_missing,
            }
        )
    if not manifest.complete:
        out.print("stopped before the end; the same command continues the recording", style="yellow")
        raise typer.Exit(130)


def record_to(
    folder: Path, kafka: Any, names: Any, selected: Any, stop: Callable[[], bool], out: Console, *,
    follow: bool = False, checkpoint_url: str | None = None,
) -> "Manifest":  # fmt: skip
    """Record with a progress bar on `out`; return the recording's manifest."""
    from tamiyo.streams.recording.recorder import Recorder

    progress = Progress(TextColumn("recording"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=out)
    task = progress.add_task("recording", total=0)
    total = 0

    def plan(more: int) -> None:
        nonlocal total
        total += more
        progress.update(task, total=total)

    with progress:
        manifest = Recorder(
            folder, kafka, names, selected, follow=follow, checkpoint_url=checkpoint_url,
            on_plan=plan, on_progress=lambda count: progress.advance(task, count),
        ).run(stop)  # fmt: skip
    size = sum(part.size_bytes for part in manifest.parts)
    out.print(
        f"{sum(part.messages for part in manifest.parts):,} messages in {len(manifest.parts)} files of "
        f"{size / 1e6:,.1f} MB in {folder}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if manifest.policy_versions_missing:
        missing = ", ".join(map(str, manifest.policy_versions_missing))
        out.print(
            f"policies missing from the store: {missing}; a replay cannot repeat their decisions",
            style="yellow", highlight=False, soft_wrap=True,
        )  # fmt: skip
    return manifest


def selection(
    topic: list[str] | None, run: list[str] | None, since: str | None, until: str | None, offsets: list[str] | None
) -> Any:
    """Return the Selection that the options describe; raises ConfigurationError where they are wrong."""
    from tamiyo.streams.recording.topic_reader import Selection

    chosen: dict[str, Any] = {"topics": topic_names(topic)} if topic else {}
    first, last = time_ms("--since", since), time_ms("--until", until)
    if first is not None and last is not None and first >= last:
        raise ConfigurationError(f"--since {since} does not lie before --until {until}")
    return Selection(runs=tuple(run or ()), since_ms=first, until_ms=last, offsets=_offsets(offsets or []), **chosen)


def topic_names(names: list[str]) -> tuple[str, ...]:
    """Return the names without repeats; raises ConfigurationError for one that is not in the catalogue."""
    from tamiyo.schemas.topics import BY_NAME

    for name in names:
        if name not in BY_NAME:
            raise ConfigurationError(f"no topic {name!r} in the catalogue; `tamiyo topics list` names them")
    return tuple(dict.fromkeys(names))


def _offsets(texts: list[str]) -> dict[str, tuple[int | None, int | None]]:
    found: dict[str, tuple[int | None, int | None]] = {}
    for text in texts:
        match = OFFSETS.fullmatch(text)
        if match is None:
            raise ConfigurationError(
                f"--offsets {text}: expected TOPIC:PARTITION=FIRST-LAST, like tamiyo.health.windows:0=10-99"
            )
        topic_names([match["place"].rpartition(":")[0]])
        first = int(match["first"]) if match["first"] else None
        after = int(match["last"]) + 1 if match["last"] else None
        if first is not None and after is not None and first >= after:
            raise ConfigurationError(f"--offsets {text}: FIRST is greater than LAST")
        found[match["place"]] = (first, after)
    return found
