"""`make evidence`: what is shown about the reward and the policy, from real runs, with the figures and the page.

By default, a few of the committed runs are made again and compared, and tables and figures are written from the
committed rows: some minutes. With `--full`, all runs on the reward are made, the estimator is fitted to those set apart
for it, and the rows are written anew; with `--worth`, only worths are measured again; with `--full-policy`, all runs on
the policy are made: hours, resumable. With `--pairs 20`, only those of its runs of which no row is committed.
"""

from __future__ import annotations

import math
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tamiyo.evaluation.common.command_line import program
from tamiyo.evaluation.common.report import ReportFile, prepare_report, write_report
from tamiyo.evaluation.common.worker_process import prepare
from tamiyo.evaluation.evidence import figures, page, policy, reward
from tamiyo.evaluation.evidence.worth import measure, merged
from tamiyo.evaluation.lab.fit import fit
from tamiyo.evaluation.lab.judge import judge, rows, training_cases
from tamiyo.evaluation.lab.suites import fitting_jobs, judging_jobs, sample_jobs, worth_jobs
from tamiyo.evaluation.lab.traffic import Job, generate, load, make, quiet
from tamiyo.evaluation.lab.training.learning import learning_curve
from tamiyo.schemas.files import write_atomically
from tamiyo.streams.stages.rewards.fitted import BUILTIN, load_fitted

RESULTS = Path(__file__).parents[1] / "results"
DOCS = Path(__file__).parents[2] / "docs"
LEARNERS = 20
"""Learners whose curves are drawn, one a seed."""
TOLERANCE = 1e-6
"""Nats, within which a row made again counts as the same."""

app = program(rich_markup_mode="rich")


@app.command(
    epilog="Examples:\n\n"
    "  make evidence\n\n"
    '  make evidence ARGS="--report evidence.json"\n\n'
    '  make evidence ARGS="--full --folder traffic --workers 2"\n\n'
    '  make evidence ARGS="--worth"\n\n'
    '  make evidence ARGS="--full-policy"\n\n'
    '  make evidence ARGS="--pairs 20 --workers 1"'
)
@quiet()
def main(
    full: Annotated[
        bool, typer.Option("--full", help="Make all runs on the reward, fit the estimator: hours, resumable.")
    ] = False,
    worth: Annotated[
        bool, typer.Option("--worth", help="Measure worths again, for their ceiling: an hour or two, resumable.")
    ] = False,
    full_policy: Annotated[
        bool, typer.Option("--full-policy", help="Make all runs on the policy: hours, resumable.")
    ] = False,
    pairs: Annotated[
        int,
        typer.Option(
            min=0, max=20, help="Make the runs on the policy without a committed row, up to so many pairs: resumable."
        ),
    ] = 0,
    folder: Annotated[Path, typer.Option(help="Where the runs are kept.")] = Path(".cache/evidence"),
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes, one core each.")] = 2,
    report: ReportFile = None,
    sample: Annotated[int, typer.Option(min=0, max=1000, help="Committed runs to make again without --full.")] = 6,
) -> None:
    """Write docs/evidence.md with tables and figures on the reward and the policy, from real runs."""
    prepare_report(report)
    console = Console()
    if full:
        _measure_all(folder, workers, console)
    if worth:
        _measure_worth(folder / "worth", workers, console)
    if full_policy:
        _measure_policy(folder, workers, console)
    elif pairs:
        _add_pairs(pairs, folder, workers, console)
    decisions = reward.read(RESULTS / reward.DECISIONS)
    runs = reward.read(RESULTS / reward.RUNS)
    estimator = load_fitted("builtin")
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "fitted_to": estimator.about,
        "reward": reward.report(decisions, runs, estimator.version),
        **policy.report(*(reward.read(RESULTS / name) for name in (policy.PAIRS, policy.DECISIONS, policy.LEARNING))),
    }
    if sample and not (full or worth or full_policy or pairs):
        found["reproduced"] = _reproduce(sample_jobs(decisions, sample), decisions, console)
    figures.draw(decisions, runs, DOCS / "images")
    figures.draw_policy(found["policy"], reward.read(RESULTS / policy.LEARNING), DOCS / "images")
    page.write(DOCS / "evidence.md", found)
    _print(found, console)
    write_report(report, found, console)


def _measure_all(folder: Path, workers: int, console: Console) -> None:
    """Make all runs, fit the estimator and write the rows."""
    fitting, judging = fitting_jobs(), judging_jobs()
    _generate([*fitting, *judging], folder, workers, console)
    with console.status("fitting the estimator"):
        cases = [case for traffic in load(folder, fitting) for case in training_cases(traffic)]
        about = {"runs": len(fitting), "cases": len(cases), "tasks": sorted({case.task for case in cases})}
        version = time.strftime("fitted-%Y-%m-%d")
        write_atomically(BUILTIN, fit(cases, version, about).save())
        load_fitted.cache_clear()
    with console.status("judging"):
        decided, runs = reward.measure(folder, judging, load_fitted("builtin"))
    reward.save(decided, RESULTS / reward.DECISIONS)
    reward.save(runs, RESULTS / reward.RUNS)


def _measure_worth(folder: Path, workers: int, console: Console) -> None:
    """Measure worths again, and write them into the committed rows."""
    jobs = worth_jobs()
    _generate(jobs, folder, workers, console)
    path = RESULTS / reward.DECISIONS
    reward.save(merged(reward.read(path), measure(folder, jobs)), path)


def _measure_policy(folder: Path, workers: int, console: Console) -> None:
    """Make the policy's runs and those that they are compared with, and learners; write the rows."""
    _generate([*policy.pair_jobs(), *policy.twin_jobs()], folder, workers, console)
    kept = policy.not_repeatable(reward.read(RESULTS / policy.PAIRS))
    reward.save(policy.with_new_pairs(kept, folder), RESULTS / policy.PAIRS)
    reward.save(policy.measure_decisions(folder), RESULTS / policy.DECISIONS)
    with (
        console.status(f"{LEARNERS} learners on the bandit of graphs"),
        ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=prepare) as pool,
    ):
        curves = [asdict(stage) for curve in pool.map(learning_curve, range(LEARNERS)) for stage in curve]
    reward.save(curves, RESULTS / policy.LEARNING)


def _add_pairs(most: int, folder: Path, workers: int, console: Console) -> None:
    """Make the runs of which no row is committed, and write their rows beside the others."""
    committed = reward.read(RESULTS / policy.PAIRS)
    _generate(policy.missing_jobs(committed, most), folder, workers, console)
    reward.save(policy.with_new_pairs(committed, folder), RESULTS / policy.PAIRS)


def _generate(jobs: list[Job], folder: Path, workers: int, console: Console) -> None:
    failed: list[str] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training runs and twins", total=len(jobs))

        def done(job: Job, error: Exception | None) -> None:
            progress.advance(bar)
            if error is not None:
                failed.append(str(error))
                progress.console.print(str(error), style="red", markup=False)

        progress.advance(bar, len(jobs) - generate(jobs, folder, workers, done))
    if failed:
        raise typer.Exit(1)


def _reproduce(jobs: list[Job], decisions: reward.Rows, console: Console) -> dict[str, int]:
    """Make committed runs again; return how many of their rows came out the same."""
    estimator = load_fitted("builtin")
    same = total = 0
    committed = {(row["policy"], row["decision_id"]): row for row in decisions}  # policies may decide on one graph
    for job in jobs:
        console.print(f"making {job.name} again", highlight=False)
        for row in rows(judge(make(job), estimator)):
            expected = committed.get((row["policy"], row["decision_id"]))
            total += 1
            same += expected is not None and all(
                _same(expected[name], row[name]) for name in ("true_gain", "true_worth", "gain")
            )
    return {"rows": total, "same": same}


def _same(expected: float, found: float) -> bool:
    """Return whether a value came out the same; NaN, where there is no twin, equals NaN."""
    return (math.isnan(expected) and math.isnan(found)) or abs(expected - found) <= TOLERANCE


def _print(found: dict[str, Any], console: Console) -> None:
    console.print(page.summary(found), highlight=False, markup=False)


if __name__ == "__main__":
    app()
