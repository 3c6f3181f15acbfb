"""Measures `tamiyo watch`: a recording of 100,000 records, and an installation of which 100 runs stream.

On the embedded broker; the server is a process of its own, as users run it. The bars: content within a second, an event
on the stream 200 ms after it is on its topic (p95), flat memory. What a browser makes of it is measured apart.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from tamiyo.evaluation.common.command_line import run_program
from tamiyo.evaluation.common.installation import end_by_signal
from tamiyo.evaluation.common.measure import command, machine, versions
from tamiyo.evaluation.common.report import require_folder, write_report
from tamiyo.evaluation.watch.bars import live_bars, recording_bars
from tamiyo.streams.process.logs import configure
from tamiyo.streams.settings import LogSettings

BARS = {"first_content_s": 1.0, "event_to_stream_p95_ms": 200.0}


def main(
    records: Annotated[int, typer.Option(min=1_000, help="Records of the recording, about.")] = 100_000,
    runs: Annotated[int, typer.Option(min=1, help="Runs of the installation.")] = 1_000,
    streaming: Annotated[int, typer.Option(min=1, help="Runs that train, with three records a second each.")] = 100,
    seconds: Annotated[float, typer.Option(min=2, help="Seconds to follow them; 3600 for the memory of an hour.")] = 60,
    recording: Annotated[
        Path | None, typer.Option(help="Recording to read; made and kept there if it does not exist.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the results as JSON to this file.")] = None,
) -> None:
    """Measure the watch page's server."""
    require_folder(report)
    end_by_signal()
    torch.set_num_threads(1)
    configure(LogSettings(level="WARNING"))
    console = Console()
    result: dict[str, Any] = {
        "command": command("tamiyo.evaluation.watch", sys.argv[1:]),
        "machine": machine(),
        "versions": versions(),
        "bars": BARS,
    }
    with TemporaryDirectory(prefix="tamiyo-watch-") as folder:
        result["recording"] = recording_bars(recording or Path(folder) / "recording", records)
    console.print(result["recording"])
    result["live"] = live_bars(runs, min(streaming, runs), seconds)
    console.print(result["live"])
    result["met"] = {
        "first_content_s": result["recording"]["first_content_s"] <= BARS["first_content_s"],
        "event_to_stream_p95_ms": result["live"]["event_to_stream_ms"]["p95"] <= BARS["event_to_stream_p95_ms"],
    }
    console.print(result["met"])
    write_report(report, result, console)
    if not all(result["met"].values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    run_program(main)
