"""The figure of a soak's report: memory, handles, lag and latency over time, faults as vertical lines."""

import json
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tamiyo.evaluation.common.command_line import program
from tamiyo.evaluation.common.report import require_folder

# A panel each: its title, the unit of its axis, and the suffix of its series' names.
PANELS = (
    ("resident memory", "MB", "rss_mb"),
    ("file handles", "handles", "fds"),
    ("records not acknowledged, by stage", "records", "lag"),
    ("window complete to decision", "ms", ""),
)
FAULT_COLOURS = {"broker restart": "tab:red", "kill": "tab:orange", "freeze": "tab:blue", "restart": "tab:green"}
LEFT_OUT = ("broker fds", "soak fds", "broker rss_mb", "soak rss_mb")
"""Series that are not the installation's; the broker's 300 handles would flatten the others."""


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw `report` into a PNG or SVG file, according to the suffix of `path`."""
    mpl.rcParams["svg.hashsalt"] = "tamiyo"  # the same report gives the same file
    figure = Figure(figsize=(10, 11), layout="constrained")
    axes = figure.subplots(len(PANELS), 1, sharex=True)
    for panel, (title, unit, ending) in zip(axes, PANELS, strict=True):
        for name, series in sorted(report["series"].items()):
            wanted = name.endswith(f" {ending}") if ending else name.startswith("decision ")
            if wanted and name not in LEFT_OUT:
                panel.plot(series["minutes"], series["values"], linewidth=1, label=name.removesuffix(f" {ending}"))
        _mark(panel, report["faults"]["minutes"])
        panel.set_title(title, loc="left", fontsize="medium")
        panel.set_ylabel(unit)
        panel.set_ylim(bottom=0)
        panel.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", frameon=False)
        panel.grid(alpha=0.3)
    axes[-1].set_yscale("log")
    axes[-1].set_ylim(bottom=10)
    axes[-1].set_xlabel("minutes; dashed: " + ", ".join(f"{kind} ({_plain(c)})" for kind, c in FAULT_COLOURS.items()))
    figure.suptitle(
        f"{report['minutes']:.0f} minutes, {report['faults']['count']} faults, "
        f"{report['load']['records_per_second']:g} records/s, {report['account']['decisions']:,} decisions"
    )
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)


def _mark(panel: Axes, faults: list[tuple[float, str, str]]) -> None:
    for minute, kind, _ in faults:
        panel.axvline(minute, color=FAULT_COLOURS[kind], alpha=0.4, linewidth=0.8, linestyle="--")


def _plain(colour: str) -> str:
    return colour.removeprefix("tab:")


app = program()


@app.command(epilog="Example: `python -m tamiyo.evaluation.soak.plot soak.json soak.svg`")
def main(
    report: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Report of `make soak`")],
    figure: Annotated[Path, typer.Argument(help="File to write: .png or .svg")],
) -> None:
    """Draw the figure of a soak's report."""
    require_folder(figure, "FIGURE")
    draw(json.loads(report.read_text()), figure)


if __name__ == "__main__":
    app()
