"""`tamiyo runs`: lists runs, and forgets those that are over."""

import threading
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from tamiyo.schemas.display import printable, write_json
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import AsJson, Bootstrap, examples
from tamiyo.streams.cli.options.durations import seconds, time_ms
from tamiyo.streams.cli.watching import reading
from tamiyo.streams.process.interrupts import on_signals


class State(StrEnum):
    """States of runs."""

    TRAINING = "training"
    PAUSED = "paused"
    FINISHED = "finished"
    SILENT = "silent"


class Sort(StrEnum):
    """What runs are sorted by; the names of `tamiyo.streams.watch.terminal.SORTS`."""

    STATE = "state"
    TIME = "time"
    RUN = "run"
    STEP = "step"
    LOSS = "loss"
    ADAPTATIONS = "adaptations"
    REWARD = "reward"
    WORTH = "worth"
    OVERHEAD = "overhead"


class ListByDefault(TyperGroup):
    """A group whose first command is run where none is named: `tamiyo runs --json` is `tamiyo runs list --json`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the first command before options."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = [next(iter(self.commands)), *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(
    cls=ListByDefault,
    help="List runs, and forget those that are over. Without a command it lists them.",
    epilog=examples("tamiyo runs", "tamiyo runs --state training --sort loss", "tamiyo runs forget --older-than 30d"),
)

console = Console()


@app.callback()
def group() -> None:
    """List runs, and forget those that are over. Without a command it lists them."""


@app.command(
    "list",
    epilog=examples(
        "tamiyo runs list",
        "tamiyo runs list --state training --state paused --sort loss",
        "tamiyo runs list --task mnist --since 30d --json",
        "tamiyo runs list --recording recordings/monday",
    ),
)
def list_runs(
    state: Annotated[
        list[State] | None, typer.Option("--state", help="Only runs in this state; repeat for several.")
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="TEXT", help="Only runs whose task has this in its name.")] = None,
    sort: Annotated[Sort, typer.Option(help="Lowest loss first; of other numbers and times the highest.")] = Sort.STATE,
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Runs with records since this time: a duration back such as 12h, or 2026-05-01T10:00 (UTC).",
        ),
    ] = "7d",
    recording: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="List the runs of a recording, whole.")
    ] = None,
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """List runs with state, step, loss, adaptations and rewards.

    Runs that have published nothing for 30 minutes, and no last frame, are silent.
    """
    from tamiyo.streams.watch import views
    from tamiyo.streams.watch.terminal import Canvas, render_fleet, selected

    since_ms = time_ms("--since", since)
    kafka = None if recording is not None else options.connected_kafka(bootstrap)
    stop = threading.Event()
    on_signals(stop.set)
    with reading.started(reading.open_listing(kafka, recording, since_ms)) as feed:
        reading.wait(feed, stop.is_set)
        document = views.fleet(feed.history)
    if recording is None and since_ms is not None:
        # Topologies lie on a compacted topic, which is read whole: those of older runs are not in the listing.
        document["runs"] = [row for row in document["runs"] if (row.get("time_ms") or 0) >= since_ms]
    rows = selected(document["runs"], states=[str(each) for each in state or ()], task=task, sort=str(sort))
    if as_json:
        write_json({**document, "runs": rows})
    else:
        console.print(render_fleet(document, rows, Canvas.of(console)))


@app.command(
    "forget",
    epilog=examples(
        "tamiyo runs forget --older-than 30d --dry-run",
        "tamiyo runs forget --older-than 30d --yes",
        "tamiyo runs forget --run mnist1d-0 --older-than 1h",
    ),
)
def forget(
    older_than: Annotated[
        float,
        typer.Option(parser=seconds, metavar="TIME", help="Only runs that have published nothing for this long."),
    ] = "30d",  # type: ignore[assignment]
    run_id: Annotated[str | None, typer.Option("--run", metavar="RUN_ID", help="Only this run.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Remove topologies, kernel records and orders of finished runs from the compacted topics.

    Stages read these topics whole when they start. A live run is never forgotten. A forgotten run that goes on must
    attach again.
    """
    from tamiyo.streams.admin.runs import FinishedRuns

    def report(text: str) -> None:
        typer.echo(printable(text), err=True)

    kafka, names = options.connected_kafka(bootstrap), options.names()
    finished = FinishedRuns(kafka, names, older_than_s=older_than, run_id=run_id, report=report)
    if not as_json:
        for run in finished.found:
            row = run.described()
            records = ", ".join(f"{count} on {topic}" for topic, count in row["records"].items())
            _print(f"{run.run_id}: newest {_time(run.newest_ms)}; {records}")
        for name in finished.live:
            _print(f"{name}: live, not forgotten")
    if finished.found and not dry_run:
        if not yes:
            typer.confirm(f"Forget {len(finished.found):,} runs?", abort=True, err=True)
        with options.resumable("give the command again: what is forgotten is not found any more"):
            finished.forget(report)
    if as_json:
        runs = [each.described() for each in finished.found]
        write_json({"forgotten": not dry_run, "runs": runs, "live": finished.live})
    elif not finished.found:
        _print(f"run {run_id} is not old enough" if run_id is not None else "no run is old enough to be forgotten")
    else:
        _print(f"{len(finished.found):,} runs {'would be' if dry_run else 'are'} forgotten")


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _print(text: str) -> None:
    console.print(printable(text), highlight=False, soft_wrap=True, markup=False)
