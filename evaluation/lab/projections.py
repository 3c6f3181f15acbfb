"""Measure the error of the projected loss (`streams/stages/rewards/projection.py`) on runs without Tamiyo.

    python -m tamiyo.evaluation.lab.projections

Trains static runs of every task, projects their validation loss from several moments, and prints for each damping the
mean error of log loss. Below 0 the projection is too low and withholds credit; above 0 it credits drift.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tamiyo.evaluation.common.command_line import run_program
from tamiyo.host._reference.tasks import TASKS, load_task
from tamiyo.host._reference.train import train
from tamiyo.schemas.display import narrow
from tamiyo.streams.stages.rewards.projection import DAMPING, Projection

WINDOW = 50  # steps between two validations, the default width of a window
BASELINE_WINDOWS = 12
MOMENTS = (300, 400, 500, 600, 800, 1000, 1500)
AHEAD = (200, 500, 1000, 1500)
DAMPINGS = (1.0, 0.7, 0.5, 0.35, 0.25)

Curve = Sequence[tuple[int, float]]


def curve(task: str, seed: int, steps: int) -> Curve:
    """Return (step, validation loss) of a static run."""
    points: list[tuple[int, float]] = []
    train(
        load_task(task),
        seed=seed,
        steps=steps,
        validate_interval=WINDOW,
        on_progress=lambda progress: points.append((progress.step, progress.validation_loss)),
    )
    return points


def errors(points: Curve, damping: float) -> list[float]:
    """Return projected minus true log loss for every moment and distance that the curve covers."""
    found = []
    for moment in MOMENTS:
        history = [point for point in points if point[0] <= moment][-BASELINE_WINDOWS:]
        projection = Projection.fit([step for step, _ in history], [loss for _, loss in history], moment)
        if projection is None:
            continue
        projection = replace(projection, horizon=projection.horizon * damping / DAMPING)
        for ahead in AHEAD:
            later = [loss for step, loss in points if abs(step - moment - ahead) <= WINDOW]
            if later:
                found.append(projection.log_loss(moment + ahead) - math.log(fmean(later)))
    return found


def main(seeds: int = 4, steps: int = 3_000) -> None:
    """Print one row per damping, from `seeds` runs of each task."""
    torch.set_num_threads(1)
    jobs = [(task, seed) for task in TASKS for seed in range(100, 100 + seeds)]
    curves = [curve(task, seed, steps) for task, seed in track(jobs, description="training static runs")]
    table = Table(title=f"{len(curves)} static runs of {steps} steps, projected from {len(MOMENTS)} moments")
    for column in ("damping", "mean error", "mean absolute error"):
        table.add_column(column, justify="right")
    for damping in DAMPINGS:
        found = [error for points in curves for error in errors(points, damping)]
        note = " (used)" if damping == DAMPING else ""
        table.add_row(f"{damping}{note}", f"{fmean(found):+.3f}", f"{fmean(map(abs, found)):.3f}")
    Console().print(narrow(table))


if __name__ == "__main__":
    run_program(main)
