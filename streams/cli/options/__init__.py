"""Options that several commands share, and the settings they stand for."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tamiyo.schemas.display import printable
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.files import folder_problem, output_problem

if TYPE_CHECKING:
    from rich.console import Console

    from tamiyo.schemas.kafka import KafkaSettings, TopicNames

# Panels of `tamiyo --help`.
TRAIN = "Train with Tamiyo"
RUN = "Run the pipeline"
OPERATE = "Operate it"
REPLAY = "Record and replay"
LABORATORY = "Laboratory"
MISSING = "Not installed"


# What a shell completes: from the code alone, without torch and without a broker.
def complete_topics(incomplete: str) -> list[str]:
    """Return the topics of the catalogue that begin so."""
    from tamiyo.schemas.topics import CATALOGUE

    return [topic.name for topic in CATALOGUE if topic.name.startswith(incomplete)]


def complete_dead_letter_topics(incomplete: str) -> list[str]:
    """Return the topics of the catalogue, and their .dlq and .late topics, that begin so."""
    from tamiyo.schemas.topics import CATALOGUE

    names = [name for topic in CATALOGUE for name in (topic.name, topic.dead_letters, topic.late)]
    return [name for name in names if name.startswith(incomplete)]


def complete_stages(incomplete: str) -> list[str]:
    """Return the stages that begin so."""
    from tamiyo.streams.stages.registry import STAGES

    return [stage for stage in STAGES if stage.startswith(incomplete)]


def complete_roles(incomplete: str) -> list[str]:
    """Return the roles of `tamiyo topics acls` that begin so."""
    from tamiyo.streams.admin.acls import ROLES

    return [role for role in ROLES if role.startswith(incomplete)]


Bootstrap = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        "-b",
        metavar="HOST:PORT",
        help="Kafka broker; several separated by commas. [env: TAMIYO_KAFKA_BOOTSTRAP_SERVERS]",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]
HttpPort = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        metavar="PORT",
        help="Port of /metrics, /healthz and /readyz; 0: any free port. [env: TAMIYO_WORKER_HTTP_PORT]",
    ),
]


def check_run_id(param: typer.CallbackParam, value: str | list[str] | None) -> str | list[str] | None:
    """Return the ids of runs in an option or argument; it is the `callback` of all of them.

    Raises:
        ConfigurationError: No run can have such an id; the message names the option.
    """
    from pydantic import TypeAdapter, ValidationError

    from tamiyo.schemas.adaptation import ALL_RUNS
    from tamiyo.schemas.errors import ConfigurationError
    from tamiyo.schemas.record import Id

    for each in (value if isinstance(value, list) else [value]) if value is not None else []:
        try:
            if each != ALL_RUNS:
                TypeAdapter(Id).validate_python(each)
        except ValidationError:
            expected = "letters, digits, . _ : / -"
            raise ConfigurationError(f"{_name(param)}: expected {expected}, found {printable(repr(each))}") from None
    return value


def check_output(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Return the file of an option, which is written after the work; it is the `callback` of all of them.

    Raises:
        ConfigurationError: The file cannot be written; the message names the option.
    """
    return _checked_path(param, value, output_problem)


def check_folder(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Return the folder of an option, which is made and filled later; it is the `callback` of all of them.

    Raises:
        ConfigurationError: The folder cannot be made or written; the message names the option.
    """
    return _checked_path(param, value, folder_problem)


def _checked_path(param: typer.CallbackParam, value: Path | None, problem: Callable[[Path], str | None]) -> Path | None:
    from tamiyo.schemas.errors import ConfigurationError

    found = None if value is None else problem(value)
    if found is not None:
        raise ConfigurationError(f"{_name(param)} {value}: {found}")
    return value


def _name(param: typer.CallbackParam) -> str:
    """Return an option as it is typed, or an argument as the help has it."""
    return param.opts[0] if param.opts[0].startswith("-") else param.opts[0].upper()


OutputFile = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", callback=check_output, help="Write the results as JSON to this file."),
]
TopicOption = Annotated[
    list[str] | None,
    typer.Option(
        "--topic",
        metavar="NAME",
        autocompletion=complete_topics,
        help="Topic of the catalogue; repeat for several. [default: all]",
    ),
]
Runs = Annotated[
    list[str] | None,
    typer.Option(
        "--run", metavar="RUN_ID", callback=check_run_id, help="Only messages of this run; repeat for several."
    ),
]


def narrator(as_json: bool) -> "Console":
    """Return where a command prints progress and sentences: standard error where standard output is JSON."""
    from rich.console import Console

    return Console(stderr=as_json)


def examples(*commands: str) -> str:
    """Return the epilog of a command's help. A command with a note is given with its own backticks."""
    title = "Example" if len(commands) == 1 else "Examples"
    return "\n\n".join([f"{title}:", *(f"- {each}" if "`" in each else f"- `{each}`" for each in commands)])


def kafka(bootstrap: str | None) -> "KafkaSettings":
    """Return the settings of the broker: the environment's, with `bootstrap` where it is given."""
    from tamiyo.schemas.kafka import KafkaSettings

    return KafkaSettings() if bootstrap is None else KafkaSettings(bootstrap_servers=bootstrap)


def connected_kafka(bootstrap: str | None) -> "KafkaSettings":
    """Return the settings of the broker once a connection to it works.

    Raises BrokerError after TAMIYO_COMMAND_PATIENCE_S seconds. Each failed attempt is a line on standard error.
    """
    from tamiyo.schemas.client.broker_wait import wait_for_broker
    from tamiyo.streams.settings import CommandSettings

    settings = kafka(bootstrap)

    def report(reason: str, left_s: float) -> None:
        sys.stderr.write(
            f"tamiyo: no connection to Kafka at {printable(settings.bootstrap_servers)} yet "
            f"({printable(reason)}); giving up in {left_s:.0f} s\n"
        )
        sys.stderr.flush()

    wait_for_broker(settings, CommandSettings().patience_s, report=report)
    return settings


def names() -> "TopicNames":
    """Return the installation's topic names, from the environment."""
    from tamiyo.schemas.kafka import TopicNames

    return TopicNames()


@contextmanager
def resumable(advice: str, *, errors: bool = True) -> Iterator[None]:
    """Where a change fails half-way, or Ctrl-C interrupts it, print how to go on.

    Args:
        advice: What to do, for example "give the command again: it goes on".
        errors: Whether errors of the broker get the advice too; False where they have their own.

    Raises:
        BrokerError: As in the block, with the advice.
        Exit: With status 130, after Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.secho(f"tamiyo: interrupted, a part may be done; {advice}", fg="red", err=True)
        raise typer.Exit(130) from None
    except BrokerError as error:
        if not errors:
            raise
        error.args = (f"{error}; a part may be done, {advice}", *error.args[1:])
        raise
