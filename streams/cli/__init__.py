"""The `tamiyo` command line.

Commands build their settings from the environment and their flags, and pass them down. They import what they run when
they run it, so that `--help` is quick.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from tamiyo.schemas.display import printable
from tamiyo.schemas.errors import TamiyoError
from tamiyo.schemas.settings import CONFIG
from tamiyo.streams.cli import (
    config,
    control,
    diff,
    dlq,
    operation,
    options,
    plan,
    plugins,
    policy,
    processes,
    record,
    replay,
    runs,
    schemas,
    topics,
    training,
)
from tamiyo.streams.cli.options import examples
from tamiyo.streams.cli.watching import watch

app = typer.Typer(
    name="tamiyo",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},  # also of all commands under it
    help="Watches neural networks while they train, and adapts them.\n\n"
    "Every command reads its settings from TAMIYO_* environment variables and a file (`--config`): a flag takes "
    "precedence over the environment, the environment over the file. `tamiyo config` shows them.\n\n"
    "Start with `tamiyo demo`.",
    epilog=examples("tamiyo demo --quick", "tamiyo worker --stage intake", "tamiyo tail tamiyo.rewards --table"),
)
for module in (training, processes, operation, watch, plan, record, replay, diff):
    module.register(app)
app.add_typer(topics.app, name="topics", rich_help_panel=options.OPERATE)
app.add_typer(schemas.app, name="schemas", rich_help_panel=options.OPERATE)
app.add_typer(config.app, name="config", rich_help_panel=options.OPERATE)
app.add_typer(control.app, name="control", rich_help_panel=options.OPERATE)
app.add_typer(policy.app, name="policy", rich_help_panel=options.OPERATE)
app.add_typer(dlq.app, name="dlq", rich_help_panel=options.OPERATE)
app.add_typer(runs.app, name="runs", rich_help_panel=options.OPERATE)
plugins.register(app)

errors = Console(stderr=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"tamiyo {version('esper-tamiyo')}\n")
        raise typer.Exit


@app.callback()
def global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            "--config", envvar=CONFIG, metavar="FILE", help="TOML file of settings; `tamiyo config reference --toml`."
        ),
    ] = None,
) -> None:
    """Global options."""
    if file is not None:
        os.environ[CONFIG] = str(file.absolute())  # for this process's settings and for its children
        from tamiyo.streams.admin.configuration import check

        check()
    if file is not None or os.environ.get("TAMIYO_REGISTRY_URL"):  # otherwise --help imports nothing more
        from tamiyo.streams.admin.schema_registry import connect

        connect(options.names())


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors that the user can correct into one line and exit status 1."""
    try:
        yield
    except TamiyoError as error:
        for line in str(error).splitlines():
            _print_error(line)
        sys.exit(1)
    except ValidationError as error:  # of a record that flags make
        for problem in error.errors(include_url=False, include_input=False):
            _print_error(f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}")
        sys.exit(1)


def _print_error(line: str) -> None:
    errors.print(f"tamiyo: {printable(line)}", style="red", highlight=False, soft_wrap=True, markup=False)


def main() -> None:
    """Run the command line."""
    with _explained():
        app()
