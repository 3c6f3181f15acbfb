"""`tamiyo lab`: runs, twins, traffic and comparisons in computed time, without Kafka.

A plug-in of the `tamiyo` command, which loads it through the entry points `tamiyo.commands`.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tamiyo.schemas.errors import ConfigurationError, DatasetError

if TYPE_CHECKING:
    from tamiyo.evaluation.lab.compare import Comparison, Pair
    from tamiyo.evaluation.lab.run import RunResult
    from tamiyo.evaluation.lab.traffic import Job
    from tamiyo.evaluation.lab.truth import Truth


def examples(*commands: str) -> str:
    """Return the epilog of a command's help, as `tamiyo.streams.cli` writes it, which loads this module."""
    title = "Example" if len(commands) == 1 else "Examples"
    return "\n\n".join([f"{title}:", *(f"- `{each}`" for each in commands)])


HIGHEST_SEED = 2**31 - 1
MOST_SEEDS = 10_000
FEWEST_STEPS = 100
"""A run's first decision is due after the first window, of 50 steps."""
MOST_STEPS = 1_000_000
ROWS = 12
"""Rows of a curve that a terminal shows."""
EXTRA = ("gymnasium", "pyarrow", "scipy")
INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    help="Train in the laboratory: exact repetitions, twins and comparisons, without Kafka.\n\n"
    "Time is computed from the operations of a run, so the same arguments give the same bits on one machine, however "
    "busy it is.",
    epilog=examples(
        "tamiyo lab tasks",
        "tamiyo lab run digits --policy heuristic --seed 3",
        "tamiyo lab compare --tasks digits --policies heuristic,at_once --seeds 0-9",
    ),
)

console = Console()
errors = Console(stderr=True)

TaskArgument = Annotated[str, typer.Argument(help="Training task; `tamiyo lab tasks` lists them.")]
PolicyOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What decides: never, heuristic, learned, random, random:RATE, pump, at_once or cheapest.",
    ),
]
SeedOption = Annotated[
    int, typer.Option(min=0, max=HIGHEST_SEED, metavar="N", help="Seed of the initialisation and the data order.")
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        min=FEWEST_STEPS, max=MOST_STEPS, metavar="N", help="Training steps. [default: as many as the task recommends]"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]
TasksOption = Annotated[str, typer.Option(metavar="NAMES", help="Training tasks, separated by commas.")]
PoliciesOption = Annotated[str, typer.Option(metavar="NAMES", help="Policies, separated by commas.")]
SeedsOption = Annotated[str, typer.Option(metavar="SEEDS", help="Seeds, such as 0-9 or 1,3,8-12.")]
WorkersOption = Annotated[
    int, typer.Option(min=1, max=256, metavar="N", help="Processes, one core and some 500 MB each.")
]


@app.command("tasks", epilog=examples("tamiyo lab tasks"))
def list_tasks(as_json: JsonOption = False) -> None:
    """List the training tasks with their networks, and how they are used."""
    rows = []
    names = _task_names()
    with _progress("making data", len(names)) as advance:
        from tamiyo.evaluation.lab.hosts import lab_task

        for name, use in names.items():
            task = lab_task(name)
            parameters = sum(p.numel() for p in task.network(0).parameters())
            rows.append({"task": name, "use": use, "parameters": parameters, "steps": task.steps})
            advance(1)
    if as_json:
        _print_json(rows)
        return
    table = Table("task", "use", _right("parameters"), _right("steps"))
    for row in rows:
        table.add_row(str(row["task"]), str(row["use"]), f"{row['parameters']:,}", f"{row['steps']:,}")
    console.print(table)


@app.command(
    "run",
    epilog=examples(
        "tamiyo lab run digits --policy heuristic --seed 3", "tamiyo lab run mnist1d --policy random:0.2 --steps 600"
    ),
)
def run(
    task: TaskArgument,
    policy: PolicyOption = "heuristic",
    seed: SeedOption = 0,
    steps: StepsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train one run under a policy, and the same run without adaptations."""
    _check([task], [policy])
    result = _trained(task, policy, seed, steps)
    never = result if policy == "never" else _trained(task, "never", seed, steps)
    with _extra():
        from tamiyo.evaluation.lab.compare import at_equal_steps
        from tamiyo.evaluation.lab.truth import costs, objective

    summary = {
        "objective": objective(result),
        "objective_never": objective(never),
        "equal_compute": objective(result) - objective(never),
        "equal_steps": at_equal_steps(result) - at_equal_steps(never),
        "costs": costs(result),
    }
    if as_json:
        _print_json({**result.to_dict(), **summary})
        return
    _print_curve(result, never)
    _print_adaptations(result)
    console.print(
        f"objective {summary['objective']:+.4f} nats, {summary['equal_compute']:+.4f} against never adapting at equal "
        f"compute, {summary['equal_steps']:+.4f} at equal steps; costs {summary['costs']:.4f}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


@app.command(
    "twins",
    epilog=examples("tamiyo lab twins digits --policy at_once --seed 3", "tamiyo lab twins digits --steps 600 --json"),
)
def twins(
    task: TaskArgument,
    policy: PolicyOption = "heuristic",
    seed: SeedOption = 0,
    steps: StepsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a run, and at each adaptation its twins without it: what each adaptation was really worth.

    All values are in nats of log loss, above 0 where the adaptation helped. gain: in the run's objective, if no later
    adaptation follows. worth: in the objective, both going on under the policy, costs included. near: in the held-out
    loss, so many steps later.
    """
    _check([task], [policy])
    with _extra():
        from tamiyo.evaluation.lab.hosts import lab_task
        from tamiyo.evaluation.lab.traffic import Job, make, quiet
        from tamiyo.evaluation.lab.truth import HORIZONS, objective, truths

    total = steps or lab_task(task).steps
    job = Job(task, policy, seed, alone=1.0, under_policy=1.0, steps=steps or 0)
    training = _progress("training a run and its twins", total)
    with quiet(), _interruptible("a run with its twins"), training as advance:
        seen = 0

        def on_step(step: int) -> None:
            nonlocal seen
            advance(step - seen)
            seen = step

        traffic = make(job, on_step)
    found = list(truths(traffic))
    if as_json:
        _print_json({"objective": objective(traffic.result), "adaptations": [asdict(each) for each in found]})
        return
    if not found:
        console.print(f"{policy} executed no adaptation in this run")
        return
    near = [f"near {horizon}" for horizon in HORIZONS]
    table = Table(_right("step"), "adaptation", *map(_right, ("gain", *near, "cost", "worth")))
    for each in found:
        table.add_row(str(each.adaptation.step), *_truth_row(each, HORIZONS))
    console.print(table)
    gains = [each.gain for each in found if each.gain is not None]
    console.print(f"{len(found)} adaptations; their gains sum to {sum(gains):+.4f} nats", highlight=False)


@app.command(
    "traffic",
    epilog=examples(
        "tamiyo lab traffic traffic/digits --tasks digits --policies random:0.2,heuristic --seeds 0-19 --workers 4"
    ),
)
def traffic(
    folder: Annotated[Path, typer.Argument(help="Where the runs' files are; finished ones are not made again.")],
    tasks: TasksOption = "digits",
    policies: PoliciesOption = "random:0.2,heuristic",
    seeds: SeedsOption = "0-9",
    workers: WorkersOption = 1,
    steps: StepsOption = None,
    alone: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the decisions with a twin that never adapts again.")
    ] = 1.0,
    under_policy: Annotated[
        float, typer.Option(metavar="SHARE", help="Share with a twin that goes on under the policy.")
    ] = 0.2,
    repeated: Annotated[
        float, typer.Option(metavar="SHARE", help="Share measured again on another order of the data.")
    ] = 0.0,
) -> None:
    """Generate runs with their twins, one Parquet file each; Ctrl-C keeps what is finished."""
    names, kinds, numbers = _names(tasks, "--tasks"), _names(policies, "--policies"), _seeds(seeds)
    _check(names, kinds)
    shares = {"alone": alone, "under_policy": under_policy, "repeated": repeated}
    for name, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise ConfigurationError(f"--{name.replace('_', '-')} {share}: expected a share in 0..1")
    with _extra():
        from tamiyo.evaluation.lab.traffic import Job

    _writable(folder)
    jobs = [Job(task, kind, seed, steps=steps or 0, **shares) for seed in numbers for task in names for kind in kinds]
    failed = _generate(jobs, folder, workers)
    console.print(f"{len(jobs) - failed} of {len(jobs)} runs are in {folder}", highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


@app.command(
    "compare",
    epilog=examples(
        "tamiyo lab compare --tasks digits,mnist1d --policies heuristic,at_once --seeds 0-19 --workers 4",
        "tamiyo lab compare --policies random:0.2 --seeds 0-9 --folder runs --output pairs.parquet",
    ),
)
def compare(
    tasks: TasksOption = "digits",
    policies: PoliciesOption = "heuristic",
    seeds: SeedsOption = "0-9",
    workers: WorkersOption = 1,
    steps: StepsOption = None,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keeps the runs, so that the same command goes on where it was stopped."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one row for each pair of runs to this Parquet file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare policies with never adapting, on paired seeds.

    Differences are in nats of early-stopped test loss, above 0 where the policy is better, with 95 % bootstrap
    intervals over the pairs. Ctrl-C shows what the finished pairs give.
    """
    names, kinds, numbers = _names(tasks, "--tasks"), _names(policies, "--policies"), _seeds(seeds)
    _check(names, kinds)
    if set(kinds) == {"never"}:
        raise ConfigurationError("--policies never: name a policy to compare with never adapting")
    if output is not None:
        _writable(output.absolute().parent)
    if folder is not None:
        _writable(folder)
    with _extra():
        from tamiyo.evaluation.lab.compare import compare as compared
        from tamiyo.evaluation.lab.compare import jobs, pairs, write
        from tamiyo.evaluation.lab.traffic import load

    wanted = jobs(names, kinds, numbers, steps=steps or 0)
    with tempfile.TemporaryDirectory(prefix="tamiyo-lab-") as temporary:
        place = folder or Path(temporary)
        failed = interrupted = 0
        try:
            failed = _generate(wanted, place, workers)
        except typer.Exit as stopped:
            interrupted = stopped.exit_code
        found = list(pairs(load(place, wanted)))
    if output is not None and found:
        write(found, output)
    _print_comparison(compared(found), found, as_json)
    if failed or interrupted or not found:
        raise typer.Exit(interrupted or 1)


def _trained(task: str, policy: str, seed: int, steps: int | None) -> "RunResult":
    """Train a run with a progress bar."""
    from tamiyo.evaluation.lab.baselines import baseline
    from tamiyo.evaluation.lab.run import Run, RunSpec

    with _extra():
        from tamiyo.evaluation.lab.traffic import quiet
    spec = RunSpec(task, seed, steps or 0)
    rule = {"rewards": {"estimator": "rule"}}  # nothing of the rewards is shown
    with (
        quiet(),
        _interruptible("the run"),
        _progress(f"training {task} under {policy}", spec.planned) as advance,
        Run(spec, baseline(policy), settings=rule) as training,
    ):
        seen = 0
        while training.advance() is not None:
            advance(training.step - seen)
            seen = training.step
            training.decide()
        advance(training.step - seen)
        return training.result()


def _generate(jobs: "list[Job]", folder: Path, workers: int) -> int:
    """Make the missing runs with a progress bar; return how many failed. Raises typer.Exit when interrupted."""
    from tamiyo.evaluation.lab import traffic as runs

    for job in runs.conflicts(jobs, folder):
        raise ConfigurationError(
            f"{folder / job.name}.parquet was made with other steps or shares: give these, or use another folder"
        )
    todo = runs.missing(jobs, folder)
    failed = 0
    with _interruptible(f"{len(todo)} runs"), _progress("training runs", len(jobs)) as advance:
        advance(len(jobs) - len(todo))

        def on_done(job: "Job", error: Exception | None) -> None:
            nonlocal failed
            advance(1)
            if error is not None:
                failed += 1
                errors.print(f"tamiyo: {error}", style="red", highlight=False, soft_wrap=True, markup=False)

        runs.generate(todo, folder, workers, on_done)
    return failed


def _print_curve(result: "RunResult", never: "RunResult") -> None:
    table = Table(*map(_right, ("step", "compute s", "validation", "test", "kernel parameters", "never: test")))
    curve, last = result.curve, len(result.curve.step) - 1
    shown = sorted({round(index * last / (ROWS - 1)) for index in range(ROWS)}) if last >= 0 else []
    for index in shown:
        table.add_row(
            f"{curve.step[index]:,}",
            f"{curve.compute[index]:.2f}",
            f"{curve.validation[index]:.4f}",
            f"{curve.test[index]:.4f}",
            f"{curve.kernel_parameters[index]:,}",
            f"{never.curve.test[index]:.4f}",
        )
    console.print(table)


def _print_adaptations(result: "RunResult") -> None:
    if not result.adaptations:
        console.print("no adaptation")
        return
    table = Table(_right("step"), "adaptation", "status")
    for each in result.adaptations:
        table.add_row(f"{each.step:,}", _in_words(each.type, each.blueprint, each.layer_id), each.status)
    console.print(table)


def _print_comparison(found: "Sequence[Comparison]", rows: "Sequence[Pair]", as_json: bool) -> None:
    if as_json:
        _print_json({"comparisons": [asdict(each) for each in found], "pairs": [asdict(each) for each in rows]})
        return
    if not found:
        console.print("no pair of runs is finished")
        return
    title = "nats of test loss gained over never adapting: mean [95 % interval]"
    columns = ("pairs", "equal compute", "equal steps", "costs", "adaptations", "compute")
    table = Table("task", "policy", *map(_right, columns), title=title)
    for each in found:
        table.add_row(
            each.task, each.policy, str(each.pairs), str(each.equal_compute), str(each.equal_steps),
            f"{each.cost:.3f}", f"{each.adaptations:.1f}", f"{each.slower:.2f}x",
        )  # fmt: skip
    console.print(table)


def _truth_row(truth: "Truth", horizons: Sequence[int]) -> list[str]:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:+.4f}"

    each = truth.adaptation
    near = [shown(truth.near.get(horizon)) for horizon in horizons]
    words = _in_words(each.type, each.blueprint, each.layer_id)
    return [words, shown(truth.gain), *near, f"{truth.cost:.4f}", shown(truth.worth)]


def _in_words(type: str, blueprint: str, layer: str) -> str:
    return f"{type} {blueprint} at {layer}" if blueprint else f"{type} at {layer}"


def _right(header: str) -> Any:
    from rich.table import Column

    return Column(header, justify="right")


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(_finite(value), indent=2) + "\n")


def _finite(value: Any) -> Any:
    """Return JSON values with null for what is not finite: NaN is no JSON."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error; yield what advances it."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def _interruptible(what: str) -> Iterator[None]:
    """End with exit status 130 on Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as error:
        errors.print(f"tamiyo: stopped {what}; finished files are kept", style="yellow", highlight=False)
        raise typer.Exit(INTERRUPTED) from error


@contextmanager
def _extra() -> Iterator[None]:
    """Explain a missing package of the extra in one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise ConfigurationError(f"`tamiyo lab` needs {error.name}: pip install 'esper-tamiyo[lab]'") from error


def _task_names() -> dict[str, str]:
    """Return every task with its use."""
    from tamiyo.evaluation.lab.hosts import HOSTS
    from tamiyo.host.reference.tasks import HELD_OUT_TASKS, LAB_TASKS

    return {
        **dict.fromkeys(LAB_TASKS, "training"),
        **dict.fromkeys(HELD_OUT_TASKS, "held out: nothing is fitted to it"),
        **dict.fromkeys(HOSTS, "fitting the reward's estimator"),
    }


def _check(tasks: Sequence[str], policies: Sequence[str]) -> None:
    """Raise DatasetError or ConfigurationError for a name that does not exist."""
    from tamiyo.evaluation.lab.baselines import baseline

    for name in tasks:
        if name not in _task_names():
            raise DatasetError(f"there is no task {name!r}; there are {', '.join(_task_names())}")
    for name in policies:
        if name != "learned":  # it takes a second to make, and exists
            baseline(name)


def _names(text: str, flag: str) -> list[str]:
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise ConfigurationError(f"{flag} {text!r}: expected names separated by commas")
    return found


def _seeds(text: str) -> list[int]:
    """Return the seeds that `text` lists, such as 0-9 or 1,3,8-12."""
    found: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not _is_seed(first) or (dash and not _is_seed(last)):
            raise ConfigurationError(f"--seeds {text}: expected seeds up to {HIGHEST_SEED}, such as 0-9 or 1,3,8-12")
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise ConfigurationError(f"--seeds {text}: {low} is greater than {high}")
        if high - low >= MOST_SEEDS or len(found) > MOST_SEEDS:
            raise ConfigurationError(f"--seeds {text}: more than {MOST_SEEDS:,} seeds")
        found.update(dict.fromkeys(range(low, high + 1)))
    return list(found)


def _is_seed(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= HIGHEST_SEED


def _writable(folder: Path) -> None:
    """Make a folder if it is missing; raise ConfigurationError if files cannot be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".tamiyo-")
        os.close(handle)
        Path(name).unlink()
    except OSError as error:
        raise ConfigurationError(f"cannot write into {folder}: {error.strerror}") from error
