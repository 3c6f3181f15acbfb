"""Reports of the evaluation programs: JSON, to a file or to standard output.

The rule for every program: `--report FILE` writes the result as JSON to a file, which is checked before hours of work.
With `--report -` the result goes to standard output and nothing else does: tables and progress go to standard error.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console

from tamiyo.schemas.display import finite
from tamiyo.schemas.files import output_problem, write_atomically

STDOUT = Path("-")
"""The report that goes to standard output."""
ReportFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the result as JSON to this file; - is standard output, and nothing else"),
]

_stdout: TextIO | None = None
"""Standard output, where it is kept for the report."""


def require_folder(path: Path | None, option: str) -> None:
    """Raise BadParameter if a file is wanted in a folder that does not exist or cannot be written."""
    problem = None if path is None else output_problem(path)
    if problem is not None:
        raise typer.BadParameter(problem, param_hint=option)


def prepare_report(report: Path | None) -> None:
    """Check that a report can be written, or keep standard output for it: call this before anything is printed.

    Raises:
        BadParameter: it is wanted in a folder that does not exist or cannot be written.
    """
    global _stdout
    if report == STDOUT:
        _stdout, sys.stdout = sys.stdout, sys.stderr
    else:
        require_folder(report, "--report")


def write_report(report: Path | None, result: Mapping[str, Any], console: Console) -> None:
    """Write `result` as JSON if a report is wanted, and print where it is."""
    text = json.dumps(finite(result), indent=1) + "\n"
    if report == STDOUT:
        stdout = _stdout or sys.stdout
        stdout.write(text)
        stdout.flush()
    elif report is not None:
        write_atomically(report, text)
        console.print(f"report written to {report}", highlight=False)
