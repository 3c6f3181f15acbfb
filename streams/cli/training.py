"""`tamiyo demo` and `tamiyo train`: training runs on this machine."""

import json
import signal
import sys
import threading
from contextlib import ExitStack
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from tamiyo.schemas.display import printable, write_json
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.files import write_atomically
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import AsJson, Bootstrap, HttpPort, OutputFile, examples
from tamiyo.streams.cli.watching.demo_page import demo_page
from tamiyo.streams.process.interrupts import on_signals

TASKS = ("mnist1d", "digits", "mnist5k")

console = Console()


def complete_tasks(incomplete: str) -> list[str]:
    """Return the tasks that begin so."""
    return [task for task in TASKS if task.startswith(incomplete)]


Task = Annotated[
    str,
    typer.Option(metavar="NAME", autocompletion=complete_tasks, help=f"Training task: {', '.join(TASKS)}."),
]
Seed = Annotated[
    int, typer.Option(min=0, max=2**31 - 1, metavar="N", help="Seed of the initialisation and the data order.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        rich_help_panel=options.TRAIN,
        epilog=examples(
            "tamiyo demo",
            "`tamiyo demo --quick --watch` (with the page of `tamiyo watch`)",
            "tamiyo demo --task digits --seed 3 --report report.json",
        ),
    )(demo)
    app.command(
        rich_help_panel=options.TRAIN,
        epilog=examples(
            "tamiyo train --task mnist1d --seed 1 --http-port 9200", "tamiyo train --static --report twin.json"
        ),
    )(train)


def demo(
    task: Task = "mnist1d",
    seed: Seed = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, metavar="N", help="Training steps. [default: 3000]")
    ] = None,
    runs: Annotated[
        int, typer.Option(min=1, max=16, metavar="N", help="Concurrent training runs, with seeds from --seed on.")
    ] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="1,000 steps: under a minute.")] = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Serve and open the page of `tamiyo watch` meanwhile, and then until Ctrl-C."),
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, metavar="PORT", help="Port of the page, with --watch; 0: any free port. [default: 8470]"
        ),
    ] = None,
    report: OutputFile = None,
    as_json: AsJson = False,
) -> None:
    """Train a network with Tamiyo on this machine, and the same network without it.

    Starts an embedded broker, the stages and the learner; needs nothing else.
    """
    from tamiyo.streams.demo import report as reports
    from tamiyo.streams.demo.demo import FULL_STEPS, QUICK_STEPS, Demo

    if port is not None and not watch:
        raise ConfigurationError("--port: it is the port of the page; add --watch")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a supervisor's stop is a Ctrl-C
    steps = steps if steps is not None else QUICK_STEPS if quick else FULL_STEPS
    out = options.narrator(as_json)
    planned = Demo(task=_known(task), seed=seed, steps=steps, runs=runs)
    with ExitStack() as stack:
        page = stack.enter_context(demo_page(out, port)) if watch else None
        result = planned.run(out, page.kafka if page is not None else None)
        if as_json:
            write_json(asdict(result))
        else:
            reports.show(result, out)
        if report is not None:
            result.write(report)
            out.print(f"report     {report}")
        if not result.complete:
            raise typer.Exit(130)
        if page is not None:
            page.serve_until_stopped(out)


def train(
    task: Task = "mnist1d",
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(min=1, max=10_000_000, metavar="N", help="Training steps.")] = 3_000,
    run_id: Annotated[
        str | None,
        typer.Option(
            metavar="RUN_ID",
            callback=options.check_run_id,
            help="Name of the run on the topics. [default: generated]",
        ),
    ] = None,
    static: Annotated[
        bool, typer.Option("--static", help="Train the static twin: the same run without Tamiyo.")
    ] = False,
    report: OutputFile = None,
    http_port: HttpPort = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Train a reference network with the SDK attached. Ctrl-C ends the run in order.

    Training comes first: without a broker the run goes on alone and ends with status 0. Lines on standard error
    report it at the start, and at the end how many records were lost; the result has `dropped_records`.
    """
    import torch

    from tamiyo.host import Handle, HostSettings, KafkaTransport
    from tamiyo.host._reference.tasks import load_task
    from tamiyo.host._reference.train import Progress, Workload
    from tamiyo.host._reference.train import train as run
    from tamiyo.schemas.client.registry import RegistrySettings
    from tamiyo.streams.admin.configuration import check, unknown_variables
    from tamiyo.streams.settings import StoreSettings

    if not static:
        check(HostSettings, lambda: options.kafka(bootstrap), options.names, RegistrySettings, StoreSettings)
    for sentence in unknown_variables():
        sys.stderr.write(f"tamiyo: {sentence}\n")
    torch.set_num_threads(1)
    stop = threading.Event()
    on_signals(stop.set)
    kafka, names = options.kafka(bootstrap), options.names()

    def print_progress(progress: Progress) -> None:
        console.print(
            f"step {progress.step:>6} of {progress.steps}  train {progress.train_loss:.3f}  "
            f"validation {progress.validation_loss:.3f}  {progress.parameters:,} parameters  {progress.seconds:.0f} s",
            highlight=False,
        )

    endpoint = ExitStack()

    def attached(workload: Workload) -> Handle:
        handle = workload.attach(run_id=run_id, transport=KafkaTransport(kafka, names))
        if http_port is not None:
            from tamiyo.streams.process.host_metrics import served
            from tamiyo.streams.settings import WorkerSettings

            port = endpoint.enter_context(
                served(handle, host=WorkerSettings().http_host, port=http_port, prefix=names.prefix)
            )
            console.print(f"metrics and health on port {port}", highlight=False)
        return handle

    with endpoint:
        result = run(
            load_task(_known(task)),
            seed=seed,
            steps=steps,
            attach_with=None if static else attached,
            on_progress=print_progress,
            should_stop=stop.is_set,
        )
    console.print_json(data=asdict(result))
    if result.dropped_records:
        sys.stderr.write(
            f"tamiyo: {result.dropped_records} records of this run did not reach Kafka at "
            f"{printable(kafka.bootstrap_servers)}; the training itself is complete\n"
        )
    if report is not None:
        write_atomically(report, json.dumps(asdict(result), indent=2) + "\n")
    if stop.is_set():
        raise typer.Exit(130)


def _known(task: str) -> str:
    if task not in TASKS:
        raise ConfigurationError(f"there is no task {task!r}; choose from {', '.join(TASKS)}")
    return task
