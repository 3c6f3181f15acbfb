"""`tamiyo runs`: forgets runs that are over."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console

from tamiyo.schemas.display import printable, write_json
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import AsJson, Bootstrap, examples
from tamiyo.streams.cli.options.durations import seconds

app = typer.Typer(
    no_args_is_help=True,
    help="Forget runs that are over.",
    epilog=examples("tamiyo runs forget --older-than 30d"),
)

console = Console()


@app.callback()
def group() -> None:
    """Forget runs that are over."""


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
