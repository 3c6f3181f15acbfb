"""`make train-policy`: trains the policy that comes with the package, in the laboratory.

In each round, twins measure what actions bring at the graphs of real training runs, and the policy is fitted to all
that was measured so far. The first round's runs are decided by the heuristic, by chance and by growing at once, later
ones by the previous round's policy too. Hours; every finished run is kept, and the same command goes on with the rest.

With `--teacher` a policy learns more instead: one round on networks of other architectures, and it keeps what it knew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tamiyo.evaluation.common.command_line import program
from tamiyo.evaluation.common.report import require_folder
from tamiyo.evaluation.lab.baselines import Learned, baseline
from tamiyo.evaluation.lab.traffic import file_path, generate, missing, quiet
from tamiyo.evaluation.lab.training.fit import FitSettings, fit, lessons, samples
from tamiyo.evaluation.lab.training.lookahead import Lookahead, LookaheadJob
from tamiyo.evaluation.lab.training.plan import first_round, further_round, later_round
from tamiyo.models.builtin import BUILTIN
from tamiyo.models.checkpoint import CheckpointHeader, save
from tamiyo.models.policy import TamiyoPolicy
from tamiyo.schemas.errors import ConfigurationError, TamiyoError
from tamiyo.schemas.files import write_atomically

app = program(rich_markup_mode="rich")


@app.command(
    epilog="Examples:\n\n"
    "  make train-policy\n\n"
    '  make train-policy ARGS="--passes 1 --rounds 1 --output /tmp/policy.safetensors"\n\n'
    '  make train-policy ARGS="--teacher builtin --passes 14 --output /tmp/policy.safetensors"\n\n'
    "  tamiyo lab compare --tasks digits --policies learned:/tmp/policy.safetensors,heuristic --seeds 0-9"
)
@quiet()
def main(
    folder: Annotated[Path, typer.Option(help="Where runs and the policies of each round are kept.")] = Path(
        ".cache/policy"
    ),
    passes: Annotated[
        int, typer.Option(min=1, max=1000, help="Passes over the tasks a round, about 9 runs each; with --teacher, 15.")
    ] = 12,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Rounds of measuring and fitting; without --teacher.")] = 3,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Policy that learns more, in one round: builtin, or learned:FILE.",
            show_default="none: a policy is trained from the beginning",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes, one core each.")] = 2,
    output: Annotated[
        Path, typer.Option(help="Where to write the policy.", show_default="the package's own file, which is replaced")
    ] = BUILTIN,
    seed: Annotated[int, typer.Option(min=0, help="Of the network's weights and the order of learning.")] = 0,
) -> None:
    """Train the policy in the laboratory; resumable."""
    console = Console()
    require_folder(output, "--output")
    try:
        settings = FitSettings(seed=seed)
        if teacher is not None:
            data = _teach(folder, teacher, passes, workers, settings, console)
        else:
            data = _train(folder, passes, rounds, workers, settings, console)
    except TamiyoError as error:
        raise SystemExit(f"the policy could not be trained: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on with the runs that are left") from None
    write_atomically(output, data)
    console.print(f"wrote {output} ({len(data) / 1e6:.1f} MB)")


def _train(folder: Path, passes: int, rounds: int, workers: int, settings: FitSettings, console: Console) -> bytes:
    done: list[LookaheadJob] = []
    data = b""
    (folder / "policies").mkdir(parents=True, exist_ok=True)
    for number in range(rounds):
        previous = folder / "policies" / f"round-{number - 1}-{passes}.safetensors"
        jobs = later_round(number, passes, f"learned:{previous}") if number else first_round(passes)
        _measure(jobs, folder, workers, console, f"round {number + 1} of {rounds}: trying actions")
        done += jobs
        data = fitted(done, folder, console, settings)
        write_atomically(folder / "policies" / f"round-{number}-{passes}.safetensors", data)
    return data


def _teach(folder: Path, teacher: str, passes: int, workers: int, settings: FitSettings, console: Console) -> bytes:
    known = baseline(teacher)
    if not isinstance(known, Learned):
        raise ConfigurationError(f"--teacher {teacher} is no learned policy; give builtin, or learned:FILE")
    folder.mkdir(parents=True, exist_ok=True)
    jobs = further_round(passes, teacher)
    _measure(jobs, folder, workers, console, "trying actions on other networks")
    return fitted(jobs, folder, console, settings, known.policy)


def _measure(jobs: list[LookaheadJob], folder: Path, workers: int, console: Console, title: str) -> None:
    with _progress(console) as progress:
        bar = progress.add_task(title, total=len(jobs), completed=len(jobs) - len(missing(jobs, folder)))

        def on_done(job: object, error: Exception | None) -> None:
            progress.advance(bar)
            if error is not None:
                console.print(f"a run failed: {error}")

        generate(jobs, folder, workers, on_done)


def fitted(
    jobs: list[LookaheadJob],
    folder: Path,
    console: Console,
    settings: FitSettings,
    teacher: TamiyoPolicy | None = None,
) -> bytes:
    """Return the checkpoint of a policy fitted to those of the jobs' runs that exist."""
    runs = [Lookahead.load(path) for job in jobs if (path := file_path(folder, job)).exists()]
    found = samples(runs)
    if not found:
        raise TamiyoError(f"no run in {folder} measured anything")
    taught = lessons(runs, teacher) if teacher is not None else []
    tried = sum(len(each.actions) for each in found)
    with _progress(console) as progress:
        bar = progress.add_task(f"fitting {tried:,} actions of {len(runs)} runs", total=settings.epochs)
        policy = fit(
            found,
            settings,
            teacher=teacher,
            taught=taught,
            on_epoch=lambda epoch: progress.update(bar, completed=epoch),
        )
    metrics = {
        "charts/runs": float(len(runs)),
        "charts/graphs": float(len(found)),
        "charts/actions": float(tried),
        "charts/lessons": float(len(taught)),
    }
    return save(policy, None, CheckpointHeader.of(policy, version=0, metrics=metrics))


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


if __name__ == "__main__":
    app()
