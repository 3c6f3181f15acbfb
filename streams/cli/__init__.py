"""The command line: `tamiyo --help`.

Commands build their settings from the environment and their flags and pass them down; what they start is imported when
it is needed, so that `--help` answers at once.
"""

import getpass
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from tamiyo.schemas.errors import ConfigurationError, TamiyoError
from tamiyo.schemas.files import write_atomically
from tamiyo.streams.cli import dlq as dlq_commands
from tamiyo.streams.cli import options as settings_of
from tamiyo.streams.cli import replay as replay_cli
from tamiyo.streams.cli import schemas as registry_commands
from tamiyo.streams.cli import topics as topics_commands
from tamiyo.streams.cli.options import Bootstrap
from tamiyo.streams.process.interrupts import on_signals

app = typer.Typer(
    name="tamiyo",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Watches neural networks while they train, and adapts them.\n\n"
    "Every command reads its settings from TAMIYO_* environment variables; a flag wins over its variable.\n\n"
    "Start with `tamiyo demo`.",
    epilog="Examples: `tamiyo demo --quick` · `tamiyo worker --stage intake` · `tamiyo tail tamiyo.rewards --table`",
)
app.add_typer(topics_commands.app, name="topics")
app.add_typer(registry_commands.app, name="schemas")
app.add_typer(dlq_commands.app, name="dlq")

console = Console()
errors = Console(stderr=True)

HttpPort = Annotated[
    int | None,
    typer.Option(
        min=0, max=65535, help="Port of /metrics, /healthz, /readyz; 0: any free [env: TAMIYO_WORKER_HTTP_PORT]"
    ),
]
Supervise = Annotated[
    bool | None,
    typer.Option(
        "--supervise/--no-supervise",
        help="Start it again after a bug, a stall or a crash [env: TAMIYO_SUPERVISOR_ENABLED] [default: supervise]",
    ),
]
TASKS = ("mnist1d", "digits", "mnist5k")


def _tell_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"tamiyo {version('esper-tamiyo')}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit")
    ] = False,
) -> None:
    """Take what stands before a command."""


def _supervised(wanted: bool | None) -> None:
    """Where a supervisor is wanted: be it, and end with what its child ended with."""
    from tamiyo.streams.settings import SupervisorSettings

    settings = SupervisorSettings() if wanted is None else SupervisorSettings(enabled=wanted)
    if settings.enabled:
        from tamiyo.streams.process.logs import configure
        from tamiyo.streams.process.supervisor import supervise

        configure()
        raise typer.Exit(supervise(sys.argv[1:], settings))


def _task(name: str) -> str:
    if name not in TASKS:
        raise ConfigurationError(f"there is no task {name!r}; choose from {', '.join(TASKS)}")
    return name


@app.command(
    epilog="Examples: `tamiyo demo` · `tamiyo demo --task digits --seed 3 --report report.json` · `tamiyo demo --quick`"
)
def demo(
    task: Annotated[str, typer.Option(help=f"What to train: {', '.join(TASKS)}")] = "mnist1d",
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of initialisation and data order")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, max=1_000_000, help="Training steps [default: 3000]")] = None,
    runs: Annotated[int, typer.Option(min=1, max=16, help="Training runs at once, seeds counted up from --seed")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="1,000 steps: under a minute")] = False,
    report: Annotated[Path | None, typer.Option(help="Write what happened as JSON to this file")] = None,
) -> None:
    """Train a real network with Tamiyo on this machine, beside its static twin. Needs nothing else."""
    from tamiyo.streams.demo import report as reports
    from tamiyo.streams.demo.demo import FULL_STEPS, QUICK_STEPS, Demo

    if report is not None and not report.parent.is_dir():
        raise ConfigurationError(f"--report {report}: there is no folder {report.parent}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a supervisor's stop is a Ctrl-C
    steps = steps if steps is not None else QUICK_STEPS if quick else FULL_STEPS
    result = Demo(task=_task(task), seed=seed, steps=steps, runs=runs).run(console)
    reports.show(result, console)
    if report is not None:
        result.write(report)
        console.print(f"report     {report}")
    if not result.complete:
        raise typer.Exit(130)


@app.command(epilog="Examples: `tamiyo broker` · `tamiyo broker --real` (from KAFKA_HOME)")
def broker(
    real: Annotated[
        bool, typer.Option("--real", help="Apache Kafka from KAFKA_HOME instead of the embedded one")
    ] = False,
) -> None:
    """Run a broker on this machine, in the foreground, until Ctrl-C. What it holds is gone afterwards."""
    from tamiyo.streams.admin.brokers import EmbeddedBroker, LocalKafka, kafka_home
    from tamiyo.streams.admin.topics import Topics

    home = kafka_home()
    if real and home is None:
        raise ConfigurationError("--real needs KAFKA_HOME to name an unpacked Kafka release")
    with LocalKafka(home) if real and home is not None else EmbeddedBroker() as running:
        Topics(settings_of.kafka(running.bootstrap_servers), settings_of.names()).create()
        console.print(
            f"export TAMIYO_KAFKA_BOOTSTRAP_SERVERS={running.bootstrap_servers}", highlight=False, soft_wrap=True
        )
        _until_told()
        console.print("stopped")


@app.command(
    epilog="Examples: `tamiyo worker` (all stages) · `tamiyo worker --stage intake --stage windows --http-port 9100`"
)
def worker(
    stage: Annotated[list[str] | None, typer.Option(help="A stage to run; repeat for several [default: all]")] = None,
    supervise: Supervise = None,
    http_port: HttpPort = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Run stages against Kafka until SIGTERM or Ctrl-C; then drain, commit and stop."""
    from tamiyo.streams.stages.registry import STAGES, entry

    chosen = list(dict.fromkeys(stage or STAGES))
    for name in chosen:
        entry(name)
    _supervised(supervise)

    import torch

    from tamiyo.streams.admin.schema_registry import prepare
    from tamiyo.streams.process.exit_codes import exit_without_cleanup
    from tamiyo.streams.process.logs import configure
    from tamiyo.streams.process.malloc import give_back
    from tamiyo.streams.runtime.worker import run_worker
    from tamiyo.streams.settings import WorkerSettings

    torch.set_num_threads(1)
    give_back()
    configure()
    settings = WorkerSettings() if http_port is None else WorkerSettings(http_port=http_port)
    prepare(settings_of.names())
    exit_without_cleanup(run_worker(chosen, settings, kafka=settings_of.kafka(bootstrap), names=settings_of.names()))


@app.command(epilog="Examples: `tamiyo learner` · `TAMIYO_LEARNER_FRESH_BATCH=64 tamiyo learner -b kafka:9092`")
def learner(supervise: Supervise = None, http_port: HttpPort = None, bootstrap: Bootstrap = None) -> None:
    """Improve the policy from the experience topic until SIGTERM or Ctrl-C; then write a checkpoint."""
    _supervised(supervise)

    import torch

    from tamiyo.streams.admin.schema_registry import prepare
    from tamiyo.streams.learner.loop import run_learner
    from tamiyo.streams.process.exit_codes import exit_without_cleanup
    from tamiyo.streams.process.logs import configure
    from tamiyo.streams.process.malloc import give_back
    from tamiyo.streams.settings import LearnerSettings

    torch.set_num_threads(1)
    give_back()
    configure()
    settings = LearnerSettings() if http_port is None else LearnerSettings(http_port=http_port)
    prepare(settings_of.names())
    exit_without_cleanup(run_learner(settings, kafka=settings_of.kafka(bootstrap), names=settings_of.names()))


@app.command(
    epilog="Examples: `tamiyo train --task mnist1d --seed 1 --http-port 9200` · "
    "`tamiyo train --static --report twin.json`"
)
def train(
    task: Annotated[str, typer.Option(help=f"What to train: {', '.join(TASKS)}")] = "mnist1d",
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of initialisation and data order")] = 0,
    steps: Annotated[int, typer.Option(min=1, max=10_000_000, help="Training steps")] = 3_000,
    run_id: Annotated[str | None, typer.Option(help="Name of the run on the topics [default: made up]")] = None,
    static: Annotated[bool, typer.Option("--static", help="The static twin: the same run without Tamiyo")] = False,
    report: Annotated[Path | None, typer.Option(help="Write the result as JSON to this file")] = None,
    http_port: HttpPort = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Train a reference network with the SDK attached; Ctrl-C ends the run properly."""
    from contextlib import ExitStack
    from dataclasses import asdict

    import torch

    from tamiyo.host import Handle, KafkaTransport
    from tamiyo.host.reference.tasks import load_task
    from tamiyo.host.reference.train import Progress, Workload
    from tamiyo.host.reference.train import train as run

    torch.set_num_threads(1)
    stop = threading.Event()
    on_signals(stop.set)
    kafka, names = settings_of.kafka(bootstrap), settings_of.names()

    def tell(progress: Progress) -> None:
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

            port = endpoint.enter_context(served(handle, host=WorkerSettings().http_host, port=http_port))
            console.print(f"metrics and health are served on port {port}", highlight=False)
        return handle

    with endpoint:
        result = run(
            load_task(_task(task)),
            seed=seed,
            steps=steps,
            attach_with=None if static else attached,
            on_progress=tell,
            should_stop=stop.is_set,
        )
    console.print_json(data=asdict(result))
    if report is not None:
        write_atomically(report, json.dumps(asdict(result), indent=2) + "\n")
    if stop.is_set():
        raise typer.Exit(130)


@app.command(
    epilog="Examples: `tamiyo tail tamiyo.adaptation.decisions` · `tamiyo tail tamiyo.rewards --no-follow --table` · "
    "`tamiyo tail telemetry.cache.hit_rates.dlq -n 5`"
)
def tail(
    topic: Annotated[str, typer.Argument(help="Topic of the catalogue, or its .dlq or .late")],
    beginning: Annotated[bool, typer.Option("--beginning/--end", help="Where to start")] = True,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", "-f/-F", help="Wait for more")] = True,
    limit: Annotated[int | None, typer.Option("-n", min=1, help="Stop after so many records")] = None,
    run_id: Annotated[str | None, typer.Option(help="Only this run's")] = None,
    table: Annotated[bool, typer.Option("--table", help="A row a record instead of one JSON a line")] = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Show a topic's records, decoded, one JSON object a line."""
    from tamiyo.streams.admin.topic_tail import catalogue_name
    from tamiyo.streams.admin.topic_tail import follow as records

    stop = threading.Event()
    on_signals(stop.set)
    names = settings_of.names()
    catalogue_name(topic, names)  # a wrong name is reported without waiting for the broker
    lines = records(
        topic,
        settings_of.connected_kafka(bootstrap),
        names,
        beginning=beginning,
        forever=follow,
        limit=limit,
        run_id=run_id,
        stopped=stop.is_set,
    )
    for line in lines:
        sys.stdout.write((line.row() if table else line.json()) + "\n")
        sys.stdout.flush()


@app.command(
    epilog="Examples: `tamiyo control --paused` (all runs) · `tamiyo control mnist1d-0 --dry-run --protect conv1` · "
    "`tamiyo control mnist1d-0` (everything allowed again)"
)
def control(
    run_id: Annotated[str, typer.Argument(help="The run it is for; * for all")] = "*",
    paused: Annotated[bool, typer.Option("--paused", help="No adaptations at all")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide and record, but execute nothing")] = False,
    protect: Annotated[list[str] | None, typer.Option(help="A layer that must not be adapted; repeat")] = None,
    reason: Annotated[str, typer.Option(help="For those who read the topic later")] = "",
    bootstrap: Bootstrap = None,
) -> None:
    """Give a standing order on the control topic; the newest under a run's name replaces the one before."""
    from tamiyo.schemas.adaptation import ControlCommand
    from tamiyo.streams.admin.control import give

    order = ControlCommand(
        run_id=run_id,
        time_ms=time.time_ns() // 1_000_000,
        paused=paused,
        dry_run=dry_run,
        protected_layers=protect or [],
        issued_by=getpass.getuser(),
        reason=reason,
    )
    give(order, settings_of.connected_kafka(bootstrap), settings_of.names())
    console.print_json(order.model_dump_json())


@app.command(epilog="Example: `tamiyo doctor -b kafka.example.org:9092`")
def doctor(bootstrap: Bootstrap = None) -> None:
    """Check versions, schemas, the store, the registry, the broker and its topics; exit 1 where something is wrong."""
    from tamiyo.schemas.registry import RegistrySettings
    from tamiyo.streams.admin.doctor import examine
    from tamiyo.streams.settings import StoreSettings

    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "problem": "[red]problem[/]"}
    wrong = False
    for finding in examine(settings_of.kafka(bootstrap), settings_of.names(), StoreSettings(), RegistrySettings()):
        wrong |= finding.state == "problem"
        console.print(f"{marks[finding.state]} {finding.what}: {finding.detail}", highlight=False, soft_wrap=True)
        if finding.advice and finding.state != "ok":
            console.print(f"    {finding.advice}", highlight=False, soft_wrap=True, markup=False)
    if wrong:
        raise typer.Exit(1)


replay_cli.register(app)


def _until_told() -> None:
    told = threading.Event()
    on_signals(told.set)
    while not told.wait(0.2):  # a wait without a limit would not let the signal's handler run
        pass


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors that are the user's to mend into one line and exit status 1."""
    try:
        yield
    except TamiyoError as error:
        errors.print(f"tamiyo: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
        sys.exit(1)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            place = "_".join(str(part) for part in problem["loc"]).upper()
            message = f"tamiyo: {error.title}.{place.lower()}: {problem['msg']} (see its TAMIYO_..._{place} variable)"
            errors.print(message, style="red", highlight=False, soft_wrap=True, markup=False)
        sys.exit(1)


def main() -> None:
    """Run the command line."""
    with _explained():
        if os.environ.get("TAMIYO_REGISTRY_URL"):  # else nothing more need be imported before --help
            from tamiyo.streams.admin.schema_registry import connect

            connect(settings_of.names())
        app()
