"""What the cells show: the cost of a layer-signal as runs and layers grow, a run's memory, two workers against one."""

import statistics
from collections.abc import Mapping
from typing import Any

from tamiyo.evaluation.scale.cells import RUN_LAYERS
from tamiyo.evaluation.scale.costs import growth_bytes

Cells = Mapping[str, Any]


def signal_us(cell: Mapping[str, Any]) -> float:
    """Return the processor microseconds of all workers for each layer-signal; the median of the rounds."""
    costs = [1e6 * float(sum(each["cpu_s"])) / int(cell["layer_signals"]) for each in cell["rounds"]]
    return statistics.median(costs)


def step_us(cell: Mapping[str, Any]) -> float:
    """Return the same for each sampled step of a run."""
    return signal_us(cell) * int(cell["layer_signals"]) / int(cell["steps"])


def summary(cells: Cells) -> dict[str, Any]:
    """Return the findings, without those whose cells are not measured yet."""
    single = {name: cell for name, cell in cells.items() if len(cell["workers"]) == 1 and not cell["cores"]}
    runs = {cell["runs"]: cell for cell in single.values() if cell["layers"] == RUN_LAYERS}
    layers = {cell["layers"]: cell for cell in cells.values() if len(cell["workers"]) > 1 and not cell["cores"]}
    pinned = {len(cell["workers"]): cell for cell in cells.values() if cell["cores"]}
    found: dict[str, Any] = {
        "runs": {
            f"{count}": {"signal_us": round(signal_us(cell), 2), "growth_bytes": growth_bytes(cell)}
            for count, cell in sorted(runs.items())
        },
        "layers": {
            f"{count}": {"signal_us": round(signal_us(cell), 2), "step_us": round(step_us(cell), 1)}
            for count, cell in sorted(layers.items())
        },
    }
    if runs:
        costs = [signal_us(cell) for cell in runs.values()]
        found["runs_flatness"] = round(max(costs) / min(costs), 3)
    if {1, 2} <= pinned.keys():
        found["two_workers"] = two_workers(pinned[1], pinned[2])
    return found


def two_workers(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, float]:
    """Return how much faster two workers are than one on the same load.

    `wall` compares wall times; where the broker has no core of its own, it holds back two workers more than one.
    `processor` compares the one worker's processor time with that of the busier of the two: the ratio of the wall times
    if nothing but the workers ran on their cores.
    """
    wall = statistics.median(each["wall_s"] for each in one["rounds"]) / statistics.median(
        each["wall_s"] for each in two["rounds"]
    )
    processor = statistics.median(each["cpu_s"][0] for each in one["rounds"]) / statistics.median(
        max(each["cpu_s"]) for each in two["rounds"]
    )
    return {"wall": round(wall, 3), "processor": round(processor, 3)}
