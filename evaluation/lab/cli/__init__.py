"""`tamiyo lab`: runs, twins, traffic and comparisons in computed time, without Kafka.

A plug-in of the `tamiyo` command, which loads it through the entry points `tamiyo.commands`.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tamiyo.evaluation.lab.cli import output
from tamiyo.evaluation.lab.cli.arguments import (
    JsonOption,
    PoliciesOption,
    PolicyOption,
    SeedOption,
    SeedsOption,
    StepsOption,
    TaskArgument,
    TasksOption,
    WorkersOption,
    needs_extra,
    parse_names,
    parse_seeds,
    require_known,
    require_writable,
    task_names,
)
from tamiyo.evaluation.lab.cli.output import (
    errors,
    print_adaptations,
    print_comparison,
    print_curve,
    progress_bar,
    right,
    truth_row,
)
from tamiyo.schemas.display import narrow, write_json
from tamiyo.schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from tamiyo.evaluation.lab.run import RunResult
    from tamiyo.evaluation.lab.traffic import Job


def examples(*commands: str) -> str:
    """Return the epilog of a command's help, as `tamiyo.streams.cli` writes it, which loads this module."""
    title = "Example" if len(commands) == 1 else "Examples"
    return "\n\n".join([f"{title}:", *(f"- `{each}`" for each in commands)])


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


@app.command("tasks", epilog=examples("tamiyo lab tasks"))
def list_tasks(as_json: JsonOption = False) -> None:
    """List the training tasks with their networks, and how they are used."""
    rows = []
    names = task_names()
    with progress_bar("making data", len(names)) as advance:
        from tamiyo.evaluation.lab.hosts import lab_task

        for name, use in names.items():
            task = lab_task(name)
            parameters = sum(p.numel() for p in task.network(0).parameters())
            rows.append({"task": name, "use": use, "parameters": parameters, "steps": task.steps})
            advance(1)
    if as_json:
        write_json(rows)
        return
    table = Table("task", "use", right("parameters"), right("steps"))
    for row in rows:
        table.add_row(str(row["task"]), str(row["use"]), f"{row['parameters']:,}", f"{row['steps']:,}")
    output.console.print(narrow(table))


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
    require_known([task], [policy], rivals=True)
    result = _trained(task, policy, seed, steps)
    never = result if policy == "never" else _trained(task, "never", seed, steps)
    with needs_extra():
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
        write_json({**result.to_dict(), **summary})
        return
    print_curve(result, never)
    print_adaptations(result)
    output.console.print(
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
    require_known([task], [policy])
    with needs_extra():
        from tamiyo.evaluation.lab.hosts import lab_task
        from tamiyo.evaluation.lab.traffic import Job, make, quiet
        from tamiyo.evaluation.lab.truth import HORIZONS, objective, truths

    total = steps or lab_task(task).steps
    job = Job(task, policy, seed, alone=1.0, under_policy=1.0, steps=steps or 0)
    training = progress_bar("training a run and its twins", total)
    with quiet(), _interruptible("a run with its twins"), training as advance:
        seen = 0

        def on_step(step: int) -> None:
            nonlocal seen
            advance(step - seen)
            seen = step

        traffic = make(job, on_step)
    found = list(truths(traffic))
    if as_json:
        write_json({"objective": objective(traffic.result), "adaptations": [asdict(each) for each in found]})
        return
    if not found:
        output.console.print(f"{policy} executed no adaptation in this run")
        return
    near = [f"near {horizon}" for horizon in HORIZONS]
    table = Table(right("step"), "adaptation", *map(right, ("gain", *near, "cost", "worth")))
    for each in found:
        table.add_row(str(each.adaptation.step), *truth_row(each, HORIZONS))
    output.console.print(narrow(table))
    gains = [each.gain for each in found if each.gain is not None]
    output.console.print(f"{len(found)} adaptations; their gains sum to {sum(gains):+.4f} nats", highlight=False)


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
        float, typer.Option(metavar="SHARE", help="Share whose gain is measured again on another order of the data.")
    ] = 0.0,
    reordered: Annotated[
        float, typer.Option(metavar="SHARE", help="Share whose worth is measured again on another order of the data.")
    ] = 0.0,
    redrawn: Annotated[
        float, typer.Option(metavar="SHARE", help="The same on a third order, and the policy draws anew.")
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Generate runs with their twins, one Parquet file each; Ctrl-C keeps what is finished."""
    names, kinds, numbers = parse_names(tasks, "--tasks"), parse_names(policies, "--policies"), parse_seeds(seeds)
    require_known(names, kinds)
    shares = {
        "alone": alone,
        "under_policy": under_policy,
        "repeated": repeated,
        "reordered": reordered,
        "redrawn": redrawn,
    }
    for name, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise ConfigurationError(f"--{name.replace('_', '-')} {share}: expected a share in 0..1")
    with needs_extra():
        from tamiyo.evaluation.lab.traffic import Job

    require_writable(folder)
    jobs = [Job(task, kind, seed, steps=steps or 0, **shares) for seed in numbers for task in names for kind in kinds]
    failed = _generate(jobs, folder, workers)
    if as_json:
        write_json({"folder": str(folder), "runs": len(jobs), "failed": failed})
    else:
        text = f"{len(jobs) - failed} of {len(jobs)} runs are in {folder}"
        output.console.print(text, highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


@app.command(
    "compare",
    epilog=examples(
        "tamiyo lab compare --tasks digits,mnist1d --policies heuristic,at_once --seeds 0-19 --workers 4",
        "tamiyo lab compare --policies random:0.2 --seeds 0-9 --folder runs --output pairs.parquet",
        "tamiyo lab compare --tasks digits --policies builtin,static,static_wider --seeds 0-9",
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

    Networks in which no policy decides are compared alike. static: the kernels with which the run under builtin ends,
    there from the first step. static_wider: no kernels, but hidden widths scaled to as many parameters. static:NAME
    and static_wider:NAME follow another policy. gromo: a perceptron that the library GroMo grows, if it is installed.
    """
    names, kinds, numbers = parse_names(tasks, "--tasks"), parse_names(policies, "--policies"), parse_seeds(seeds)
    require_known(names, kinds, rivals=True)
    if set(kinds) == {"never"}:
        raise ConfigurationError("--policies never: name a policy to compare with never adapting")
    if output is not None:
        require_writable(output.absolute().parent)
    if folder is not None:
        require_writable(folder)
    with needs_extra():
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
    print_comparison(compared(found), found, as_json)
    if failed or interrupted or not found:
        raise typer.Exit(interrupted or 1)


def _trained(task: str, policy: str, seed: int, steps: int | None) -> "RunResult":
    """Train a run with a progress bar."""
    from tamiyo.evaluation.lab.baselines import baseline
    from tamiyo.evaluation.lab.run import Run, RunSpec
    from tamiyo.evaluation.lab.statics import trained_otherwise

    with needs_extra():
        from tamiyo.evaluation.lab.traffic import quiet
    spec = RunSpec(task, seed, steps or 0)
    if (train := trained_otherwise(policy)) is not None:
        with quiet(), _interruptible("the run"), output.errors.status(f"training {task} under {policy}"):
            return train(spec)
    rule = {"rewards": {"estimator": "rule"}}  # nothing of the rewards is shown
    with (
        quiet(),
        _interruptible("the run"),
        progress_bar(f"training {task} under {policy}", spec.planned) as advance,
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
    with _interruptible(f"{len(todo)} runs"), progress_bar("training runs", len(jobs)) as advance:
        advance(len(jobs) - len(todo))

        def on_done(job: "Job", error: Exception | None) -> None:
            nonlocal failed
            advance(1)
            if error is not None:
                failed += 1
                errors.print(f"tamiyo: {error}", style="red", highlight=False, soft_wrap=True, markup=False)

        runs.generate(todo, folder, workers, on_done)
    return failed


@contextmanager
def _interruptible(what: str) -> Iterator[None]:
    """End with exit status 130 on Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as error:
        errors.print(f"tamiyo: stopped {what}; finished files are kept", style="yellow", highlight=False)
        raise typer.Exit(INTERRUPTED) from error
