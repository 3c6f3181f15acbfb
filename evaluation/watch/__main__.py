"""Measures `tamiyo watch`: a recording of 100,000 records, and an installation of which 100 runs stream.

On the embedded broker; the server is a process of its own, as users run it. The bars: content within a second, an event
on the stream and on the page 200 ms after it is on its topic (p95), 60 frames a second, flat memory. Without Chromium
and Playwright, only the server is measured.
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
from tamiyo.evaluation.common.report import ReportFile, prepare_report, write_report
from tamiyo.evaluation.watch.bars import live_bars, recording_bars
from tamiyo.streams.process.logs import configure
from tamiyo.streams.settings import LogSettings

BARS = {"first_content_s": 1.0, "event_to_stream_p95_ms": 200.0, "frames_per_second": 60, "first_paint_ms": 1_000}
FRAMES_TOLERANCE = 1.0  # a frame counted or not at the ends of the measurement, and the clock of a screen that is none


def main(
    records: Annotated[int, typer.Option(min=1_000, help="Records of the recording, about.")] = 100_000,
    runs: Annotated[int, typer.Option(min=1, help="Runs of the installation.")] = 1_000,
    streaming: Annotated[int, typer.Option(min=1, help="Runs that train, with three records a second each.")] = 100,
    seconds: Annotated[float, typer.Option(min=2, help="Seconds to follow them; 3600 for the memory of an hour.")] = 60,
    recording: Annotated[
        Path | None, typer.Option(help="Recording to read; made and kept there if it does not exist.")
    ] = None,
    report: ReportFile = None,
) -> None:
    """Measure the watch page's server."""
    prepare_report(report)
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
    result["met"] = met(result["recording"], result["live"])
    console.print(result["met"])
    write_report(report, result, console)
    if not all(result["met"].values()):
        raise typer.Exit(1)


def met(recording: dict[str, Any], live: dict[str, Any]) -> dict[str, bool]:
    """Return by bar whether it is met; those of the browser only where there was one."""
    found = {
        "first_content_s": recording["first_content_s"] <= BARS["first_content_s"],
        "event_to_stream_p95_ms": live["event_to_stream_ms"]["p95"] <= BARS["event_to_stream_p95_ms"],
    }
    if recording["browser"] is not None and live["browser"] is not None:
        frames = min(live["browser"][view]["per_second"] for view in ("fleet_frames", "run_frames"))
        found["first_paint_ms"] = recording["browser"]["first_contentful_paint_ms"] <= BARS["first_paint_ms"]
        found["event_to_page_p95_ms"] = live["browser"]["event_to_page_ms"]["p95"] <= BARS["event_to_stream_p95_ms"]
        found["frames_per_second"] = frames >= BARS["frames_per_second"] - FRAMES_TOLERANCE
    return found


if __name__ == "__main__":
    run_program(main)
