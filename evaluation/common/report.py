"""Reports of the evaluation programs: JSON files that are checked before hours of work and written after it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from tamiyo.schemas.files import output_problem, write_atomically


def require_folder(report: Path | None, option: str = "--report") -> None:
    """Raise BadParameter if a report is wanted in a folder that does not exist or cannot be written."""
    problem = None if report is None else output_problem(report)
    if problem is not None:
        raise typer.BadParameter(problem, param_hint=option)


def write_report(report: Path | None, result: Mapping[str, Any], console: Console) -> None:
    """Write `result` as JSON if a report is wanted, and print where it is."""
    if report is not None:
        write_atomically(report, json.dumps(result, indent=1) + "\n")
        console.print(f"report written to {report}", highlight=False)
