"""Unit costs from the cells: what `tamiyo plan` multiplies. Each is `fixed` + `layer` x layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls

from tamiyo.evaluation.scale.cells import STEPS_PER_WINDOW
from tamiyo.schemas.topics import (
    DECISIONS,
    EXPERIENCE,
    GRAPHS,
    KERNEL_PERFORMANCE,
    LAYER_HEALTH,
    MODEL_PERFORMANCE,
    REWARDS,
    SIGNALS,
    TOPOLOGY,
    WINDOWS,
)

FORMAT = 1
PER_STEP = ("intake", "windows")
"""The stages that read every sampled step; the others read windows."""
TOPICS = {
    **{topic.name: "step" for topic in (KERNEL_PERFORMANCE, LAYER_HEALTH, MODEL_PERFORMANCE, SIGNALS)},
    **{topic.name: "window" for topic in (WINDOWS, GRAPHS, DECISIONS, REWARDS, EXPERIENCE)},
    TOPOLOGY.name: "run",
}
"""The topics that grow with the load, and with what; the others carry what an adaptation or an operator causes."""


def line(layers: Sequence[int], values: Sequence[float]) -> dict[str, float]:
    """Fit values by `fixed` + `layer` x layers, both >= 0, with equal relative errors."""
    weights = 1 / np.maximum(np.asarray(values, dtype=np.float64), 1e-9)
    design = np.stack([np.ones(len(layers)), np.asarray(layers, dtype=np.float64)], axis=1)
    (fixed, layer), _ = nnls(design * weights[:, None], np.ones(len(layers)))
    return {"fixed": _short(fixed), "layer": _short(layer)}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def unit_costs(cells: Mapping[str, Any], learner: Mapping[str, float]) -> dict[str, Any]:
    """Return the unit costs.

    Args:
        cells: The measurements on a broker by name.
        learner: Layers, as text, to the milliseconds of an update an experience.
    """
    alone = [cell for cell in cells.values() if len(cell["workers"]) > 1 and not cell["cores"]]
    layers = [cell["layers"] for cell in alone]
    stages = [stages[0] for stages in alone[0]["workers"]]
    worker = [cell for cell in cells.values() if len(cell["workers"]) == 1 and not cell["cores"]]
    return {
        "format": FORMAT,
        "steps_per_window": STEPS_PER_WINDOW,
        "processor_us": {
            stage: {
                "per": "step" if stage in PER_STEP else "window",
                **line(
                    layers,
                    [
                        1e6 * cell["rounds"][0]["cpu_s"][number] / cell["steps" if stage in PER_STEP else "windows"]
                        for cell in alone
                    ],
                ),
            }
            for number, stage in enumerate(stages)
        },
        "broker_us": {
            "per": "step",
            **line(layers, [1e6 * cell["rounds"][0]["broker_cpu_s"] / cell["steps"] for cell in alone]),
        },
        "learner_us": {"per": "window", **line([int(each) for each in learner], [1e3 * ms for ms in learner.values()])},
        "topic_bytes": {name: {"per": per, **_bytes(alone, name, f"{per}s")} for name, per in TOPICS.items()},
        "memory_bytes": memory(worker),
    }


def _bytes(cells: Sequence[Mapping[str, Any]], topic: str, per: str) -> dict[str, float]:
    """Return the bytes on disk of a topic for each step, window or run."""
    return line(
        [cell["layers"] for cell in cells],
        [cell["rounds"][0]["topics"][topic][1] / cell[per] for cell in cells],
    )


def growth_bytes(cell: Mapping[str, Any]) -> int:
    """Return by how much a worker's memory grew until all runs of a cell were open, its buffers included."""
    ((before, held),) = cell["rounds"][0]["rss_bytes"]
    return int(held - before)


def memory(cells: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Fit a worker's memory with all runs of a cell open by `worker` + runs x (`run` + `layer` x layers)."""
    held = np.array([cell["rounds"][0]["rss_bytes"][0][1] for cell in cells], dtype=np.float64)
    runs = np.array([cell["runs"] for cell in cells], dtype=np.float64)
    layers = np.array([cell["layers"] for cell in cells], dtype=np.float64)
    (worker, run, layer), _ = nnls(
        np.stack([np.ones(len(cells)), runs, runs * layers], axis=1) / held[:, None], held / held
    )
    return {"worker": _short(worker), "run": _short(run), "layer": _short(layer)}
