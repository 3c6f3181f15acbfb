"""The command lines of the evaluation's programs: `-h` is `--help`, as for `tamiyo`."""

from collections.abc import Callable
from typing import Any

import typer


def program(**options: Any) -> typer.Typer:
    """Return the command line of a program.

    Args:
        **options: further arguments of `typer.Typer`.
    """
    return typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]}, **options)


def run_program(main: Callable[..., Any]) -> None:
    """Run a program of one command with the arguments of the command line, and exit.

    Args:
        main: its parameters are the program's arguments and options.
    """
    app = program()
    app.command()(main)
    app()
