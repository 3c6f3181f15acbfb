"""`make faults`: inject faults into an installation on a real Kafka at random moments, and check its records.

Workers of every stage, a learner, simulated runs and hosts go through the faults of `kinds.py`, several at once. Then
everything drains and stops, and the judge (`judge.py`) recomputes the expected records from the logs. The exit status
is 1 if a record is lost, wrong or repeated with another content.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tamiyo.evaluation.common.command_line import run_program
from tamiyo.evaluation.common.installation import end_by_signal, refuse_used, working_folder
from tamiyo.evaluation.common.report import STDOUT, prepare_report, write_report
from tamiyo.evaluation.faults.course import console, run
from tamiyo.evaluation.faults.kinds import ALL
from tamiyo.evaluation.faults.report import Course, read_runs, run_report, summary
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.admin.brokers import required_kafka_home

COLUMNS = (
    TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
    TimeRemainingColumn(),
)  # fmt: skip


def main(
    faults: Annotated[int, typer.Option(min=1, max=10_000, help="Number of faults for each seed")] = 20,
    seed: Annotated[
        list[int] | None, typer.Option(help="Seed of the faults and runs; repeat for several [default: 0]")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Worker processes for each stage")] = 2,
    gap: Annotated[float, typer.Option(min=0.5, max=600, help="Mean seconds between two faults")] = 6.0,
    at_once: Annotated[
        int, typer.Option(min=1, max=100, help="Inject no fault while so many others are not recovered from")
    ] = 3,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Inject only faults of this kind; repeat for several [default: all]", show_default=False),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep the logs, the store and, after a violation, the topics in this folder")
    ] = None,
    merge: Annotated[
        list[Path] | None, typer.Option(help="Inject nothing: merge this report; repeat for several")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Add each seed's result to this JSON file as soon as it is there; seeds in it are skipped. "
            "- is standard output, at the end, and nothing else",
        ),
    ] = None,
) -> None:
    """Inject faults into an installation on a real Kafka and check its records; exit 1 on any violation.

    With a report, a command that was ended goes on where it was when it is given again: seeds that the file has are not
    run again, except one that was interrupted.

    After Ctrl-C no more faults are injected: what happened until then is drained, checked and reported. A second
    Ctrl-C ends the program at once.

    Examples: `make faults` · `make faults ARGS="--faults 50 --seed 1 --seed 2 --report faults.json"` ·
    `make faults ARGS="--faults 10 --gap 15 --keep /tmp/faults"` ·
    `make faults ARGS="--kind clock_of_a_worker --faults 5"` ·
    `make faults ARGS="--merge one.json --merge two.json --report both.json"`
    """
    prepare_report(report)
    end_by_signal()
    kinds = _kinds(kind)
    runs = _read(report) if report is not None and report.exists() else {}
    for other in merge or ():
        runs.update(_read(other))
    wanted = [] if merge else list(dict.fromkeys(seed or [0]))
    left = [each for each in wanted if each not in runs or runs[each]["interrupted"]]
    for each in sorted(set(wanted) - set(left)):
        console.print(f"seed {each} is in {report} already: {runs[each]['command']}", markup=False, highlight=False)
    folders = {each: keep and keep / f"seed-{each}" for each in left}
    for kept in folders.values():  # before the first seed, which takes a quarter of an hour
        refuse_used(kept)
    home = required_kafka_home() if left else Path()
    # Where nobody watches, bars would fill the log.
    with Progress(*COLUMNS, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("faults", total=faults * len(left))
        for number, (each, kept) in enumerate(folders.items()):
            progress.update(task, description=f"seed {each}, {number + 1} of {len(left)}", completed=faults * number)
            with working_folder(kept, "tamiyo-faults-") as folder:
                course = run(
                    home, folder, faults=faults, seed=each, workers=workers, gap_s=gap, open_faults=at_once,
                    registry_home=_registry_home(each), kinds=kinds,
                    advance=lambda: progress.advance(task),
                )  # fmt: skip
            _show(course)
            options = f"--faults {faults} --seed {each} --workers {workers} --gap {gap:g} --at-once {at_once}"
            options += "".join(f" --kind {name}" for name in kind or ())
            runs[each] = run_report(course, f'make faults ARGS="{options}"')
            if report != STDOUT:
                write_report(report, summary(runs.values()), console)
            if course.interrupted:
                break
    result = summary(runs.values())
    console.print_json(
        json.dumps({key: result[key] for key in ("faults", "graphs", "violations", "counts", "recovery_seconds")})
    )
    if merge or report == STDOUT:
        write_report(report, result, console)
    if result["violations"]:
        sys.exit(1)


def _read(report: Path) -> dict[int, Mapping[str, Any]]:
    try:
        return {each["seed"]: each for each in read_runs(report)}
    except ConfigurationError as error:
        raise typer.BadParameter(str(error)) from error


def _kinds(wanted: Sequence[str] | None) -> Sequence[str]:
    for each in wanted or ():
        if each not in ALL:
            raise typer.BadParameter(f"{each}: expected one of {', '.join(sorted(ALL))}", param_hint="--kind")
    return list(dict.fromkeys(wanted or ALL))


def _registry_home(seed: int) -> Path | None:
    """Return the registry that a seed's installation uses: that of REGISTRY_HOME, every other seed."""
    home = os.environ.get("REGISTRY_HOME")
    return Path(home) if home and seed % 2 == 0 else None


def _show(course: Course) -> None:
    count = len(course.violations)
    verdict = f"[red]{count} violations[/]" if count else "[green]no violation[/]"
    console.print(f"seed {course.seed}: {len(course.injections)} faults in {course.seconds:.0f} s: {verdict}")
    for violation in course.violations[:20]:
        console.print(f"  {violation.kind}: {violation.where}: {violation.what}", markup=False, highlight=False)


if __name__ == "__main__":
    run_program(main)
