"""The figure of `make scale`: the cost of a layer-signal against runs and layers, and a worker's memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw a finished report into a PNG or SVG file, according to the suffix of `path`."""
    mpl.rcParams["svg.hashsalt"] = "tamiyo"  # the same report gives the same file
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    runs_panel, layers_panel, memory_panel = figure.subplots(1, 3)
    runs, layers = report["summary"]["runs"], report["summary"]["layers"]
    counts = [int(each) for each in runs]
    runs_panel.plot(counts, [each["signal_us"] for each in runs.values()], marker="o")
    runs_panel.set(xscale="log", xlabel="runs on one worker", ylabel="processor us a layer-signal")
    runs_panel.set_ylim(bottom=0)
    counts = [int(each) for each in layers]
    layers_panel.plot(counts, [each["signal_us"] for each in layers.values()], marker="o")
    layers_panel.set(xscale="log", yscale="log", xlabel="layers a frame", ylabel="processor us a layer-signal")
    for count, cells in _by_layers(report["cells"]).items():
        points = sorted((cell["runs"], cell["rounds"][0]["rss_bytes"][0][1] / 1e6) for cell in cells)
        memory_panel.plot(*zip(*points, strict=True), marker="o", label=f"{count} layers")
    memory_panel.set(xscale="log", xlabel="open runs", ylabel="a worker's memory, MB")
    memory_panel.set_ylim(bottom=0)
    memory_panel.legend(frameon=False, fontsize="small")
    for panel in (runs_panel, layers_panel, memory_panel):
        panel.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)


def _by_layers(cells: Mapping[str, Any]) -> dict[int, list[Any]]:
    """Return the cells of one worker of the whole chain, by the layers of their runs."""
    found: dict[int, list[Any]] = {}
    for cell in cells.values():
        if len(cell["workers"]) == 1 and not cell["cores"]:
            found.setdefault(cell["layers"], []).append(cell)
    return found
