"""Compare the computed time of a training step with the measured one, for every task, plain and grown.

python -m tamiyo.evaluation.lab.calibration
"""

from __future__ import annotations

import statistics
import time

from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from tamiyo.evaluation.common.command_line import run_program
from tamiyo.evaluation.lab.baselines import AtOnce, Baseline, Never
from tamiyo.evaluation.lab.run import Run, RunSpec
from tamiyo.host._reference.tasks import HELD_OUT_TASKS, LAB_TASKS
from tamiyo.schemas.display import narrow

MEASURED_STEPS = 60


def step_ms(task: str, policy: Baseline, steps: int) -> tuple[float, float, int]:
    """Train `steps` steps under `policy`; return computed and measured time of a step then, ms, and the kernels'
    parameters. Measured is the median processor time of forward, backward and update, without the SDK."""
    with Run(RunSpec(task, seed=0, steps=steps), policy) as run, run.clock.running():
        run.finish()
        model, optimizer = run.workload.model, run.workload.optimizer
        batches = run.workload.task.batches(1)
        model.train()
        times = []
        before = run.clock.training_seconds
        for _ in range(MEASURED_STEPS):
            _, inputs, labels = next(batches)
            started = time.thread_time()
            with run.clock.training():
                loss = F.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            times.append(time.thread_time() - started)
            run.clock.complete_step(optimizer)
        computed = (run.clock.training_seconds - before) / MEASURED_STEPS
        return computed * 1e3, statistics.median(times) * 1e3, run.result().curve.kernel_parameters[-1]


def main(steps: int = 200) -> None:
    """Print one row for each task, plain and grown as fast as the limits allow."""
    table = Table("task", "kernel parameters", "computed ms", "measured ms", "ratio")
    for task in (*LAB_TASKS, *HELD_OUT_TASKS):
        for policy in (Never(), AtOnce()):
            computed, measured, parameters = step_ms(task, policy, steps)
            table.add_row(task, str(parameters), f"{computed:.2f}", f"{measured:.2f}", f"{computed / measured:.2f}")
    Console().print(narrow(table))


if __name__ == "__main__":
    run_program(main)
