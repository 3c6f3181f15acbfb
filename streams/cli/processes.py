"""`tamiyo broker`, `tamiyo worker` and `tamiyo learner`: the processes of an installation."""

import functools
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import Bootstrap, HttpPort, examples
from tamiyo.streams.process.interrupts import on_signals

if TYPE_CHECKING:
    from tamiyo.streams.settings import SupervisorSettings

console = Console()

Supervise = Annotated[
    bool | None,
    typer.Option(
        "--supervise/--no-supervise",
        help="Restart the process after a bug, a stall or a crash. [env: TAMIYO_SUPERVISOR_ENABLED] "
        "[default: supervise]",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        rich_help_panel=options.RUN, epilog=examples("tamiyo broker", "`tamiyo broker --real` (from KAFKA_HOME)")
    )(broker)
    app.command(
        rich_help_panel=options.RUN,
        epilog=examples(
            "`tamiyo worker` (all stages)", "tamiyo worker --stage intake --stage windows --http-port 9100"
        ),
    )(worker)
    app.command(
        rich_help_panel=options.RUN,
        epilog=examples("tamiyo learner", "TAMIYO_LEARNER_FRESH_BATCH=64 tamiyo learner -b kafka:9092"),
    )(learner)


def broker(
    real: Annotated[
        bool, typer.Option("--real", help="Run Apache Kafka from KAFKA_HOME instead of the embedded broker.")
    ] = False,
) -> None:
    """Run a broker on this machine, in the foreground, until Ctrl-C. Its data is discarded afterwards."""
    from tamiyo.streams.admin.brokers import EmbeddedBroker, LocalKafka, kafka_home
    from tamiyo.streams.admin.topics import Topics

    home = kafka_home()
    if real and home is None:
        raise ConfigurationError("--real needs KAFKA_HOME to name an unpacked Kafka release")
    with LocalKafka(home) if real and home is not None else EmbeddedBroker() as running:
        Topics(options.kafka(running.bootstrap_servers), options.names()).create()
        console.print(
            f"export TAMIYO_KAFKA_BOOTSTRAP_SERVERS={running.bootstrap_servers}", highlight=False, soft_wrap=True
        )
        _wait_for_signal()
        console.print("stopped")


def worker(
    stage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            autocompletion=options.complete_stages,
            help="Stage to run; repeat for several. [default: all]",
        ),
    ] = None,
    supervise: Supervise = None,
    http_port: HttpPort = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Run stages until SIGTERM or Ctrl-C; then drain, commit and stop.

    Exit status: 0 after a stop, 1 if a setting is wrong or Kafka cannot be used, 70 after a bug, 75 after a failure
    that a restart may fix.
    """
    from tamiyo.streams.admin.configuration import check
    from tamiyo.streams.process.stop_times import require_stop_times
    from tamiyo.streams.settings import WorkerSettings
    from tamiyo.streams.stages.registry import STAGES, entry

    chosen = list(dict.fromkeys(stage or STAGES))
    entries = [entry(name) for name in chosen]
    own = functools.partial(WorkerSettings, **_given(http_port=http_port))
    shared = _shared(supervise, bootstrap)
    check(own, *shared, *(each.settings for each in entries))
    require_stop_times(_supervisor(supervise), own())
    _supervise(supervise)

    import torch

    from tamiyo.schemas.stores import require_writable
    from tamiyo.streams.admin.schema_registry import prepare
    from tamiyo.streams.process.exit_codes import exit_without_cleanup
    from tamiyo.streams.process.malloc import limit_heaps
    from tamiyo.streams.runtime.worker import run_worker

    torch.set_num_threads(1)
    limit_heaps()
    _begin_logs()
    settings = own()
    require_writable(Path(settings.state_dir).absolute().as_uri(), "TAMIYO_WORKER_STATE_DIR")
    prepare(options.names())
    exit_without_cleanup(run_worker(chosen, settings, kafka=options.kafka(bootstrap), names=options.names()))


def learner(supervise: Supervise = None, http_port: HttpPort = None, bootstrap: Bootstrap = None) -> None:
    """Improve the policy from the experience topic until SIGTERM or Ctrl-C; then finish the update and stop.

    Run exactly one for each policy. Exit status as of `tamiyo worker`.
    """
    from tamiyo.streams.admin.configuration import check
    from tamiyo.streams.settings import LearnerSettings, store_setting

    own = functools.partial(LearnerSettings, **_given(http_port=http_port))
    check(own, *_shared(supervise, bootstrap))
    _supervise(supervise)

    import torch

    from tamiyo.schemas.stores import require_writable
    from tamiyo.streams.admin.schema_registry import prepare
    from tamiyo.streams.learner.process import run_learner
    from tamiyo.streams.process.exit_codes import exit_without_cleanup
    from tamiyo.streams.process.malloc import limit_heaps

    torch.set_num_threads(1)
    limit_heaps()
    _begin_logs()
    settings = own()
    require_writable(settings.checkpoint_url, store_setting(LearnerSettings, "checkpoint_url"))
    prepare(options.names())
    exit_without_cleanup(run_learner(settings, kafka=options.kafka(bootstrap), names=options.names()))


def _given(**flags: Any) -> dict[str, Any]:
    """Return the flags that were given, which win over the environment."""
    return {name: value for name, value in flags.items() if value is not None}


def _shared(supervise: bool | None, bootstrap: str | None) -> list[Callable[[], object]]:
    """Return what makes the settings that worker and learner share."""
    from tamiyo.schemas.client.registry import RegistrySettings
    from tamiyo.streams.settings import LogSettings, StoreSettings

    supervisor = functools.partial(_supervisor, supervise)
    return [supervisor, lambda: options.kafka(bootstrap), options.names, RegistrySettings, StoreSettings, LogSettings]


def _supervisor(wanted: bool | None) -> "SupervisorSettings":
    from tamiyo.streams.settings import SupervisorSettings

    return SupervisorSettings(**_given(enabled=wanted))


def _supervise(wanted: bool | None) -> None:
    """Become the supervisor of this command line if one is wanted, and exit with its child's last status."""
    settings = _supervisor(wanted)
    if settings.enabled:
        from tamiyo.streams.process.logs import configure
        from tamiyo.streams.process.supervisor import supervise

        configure()
        raise typer.Exit(supervise(sys.argv[1:], settings))


def _begin_logs() -> None:
    """Configure the logs, and report variables that are no settings."""
    import structlog

    from tamiyo.streams.admin.configuration import unknown_variables
    from tamiyo.streams.process.logs import configure

    configure()
    for sentence in unknown_variables():
        structlog.get_logger(__name__).warning("unknown variable", detail=sentence)


def _wait_for_signal() -> None:
    stopped = threading.Event()
    on_signals(stopped.set)
    while not stopped.wait(0.2):  # a wait without a limit would not let the signal's handler run
        pass
