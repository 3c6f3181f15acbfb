"""What the SDK costs a training step: the reference host with it and without, in turns."""

import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from tamiyo.evaluation.bench_measure import Result
from tamiyo.host.handle import Handle
from tamiyo.host.settings import HostSettings
from tamiyo.host.tasks import load_task
from tamiyo.host.train import Workload, train
from tamiyo.schemas.kafka import KafkaSettings


def overhead(bootstrap_servers: str, *, task: str, steps: int, repeats: int) -> list[Result]:
    """Train `repeats` pairs of `steps` steps; nobody answers, so both networks do the same work.

    In turns, and paired: what else the machine does hits both of a pair alike. Wall time is what a user waits for;
    processor time, which holds the publishing thread's too, says more where others use the machine.
    """
    prepared = load_task(task)
    kafka = KafkaSettings(bootstrap_servers=bootstrap_servers)

    with tempfile.TemporaryDirectory(prefix="tamiyo-bench-") as folder:
        settings = HostSettings(store_url=f"file://{folder}", drain_s=0.0)

        def attach(workload: Workload) -> Handle:
            return workload.attach(run_id=f"bench-host-{uuid.uuid4().hex[:8]}", settings=settings, kafka=kafka)

        def once(attach_with: Callable[[Workload], Handle] | None) -> _Run:
            watch = _Watch()
            result = train(
                prepared, steps=steps, attach_with=attach_with, validate_interval=steps + 1, should_stop=watch.look
            )
            return _Run(result.wall_seconds, watch.cpu_s, result.overhead_ratio, result.dropped_records)

        once(None), once(attach)  # warm-up
        pairs = [(once(None), once(attach)) for _ in range(repeats)]
    extra = {
        "task": task,
        "steps": steps,
        "step_ms_without": min(without.wall_s for without, _ in pairs) / steps * 1000,
        "step_ms_with": min(attached.wall_s for _, attached in pairs) / steps * 1000,
        "told_by_the_sdk": [attached.told for _, attached in pairs],
        "dropped_records": sum(attached.dropped for _, attached in pairs),
        "budget": 0.10,
    }
    wall = tuple(attached.wall_s / without.wall_s - 1 for without, attached in pairs)
    cpu = tuple(attached.cpu_s / without.cpu_s - 1 for without, attached in pairs)
    return [
        Result("SDK", f"overhead on the step, {task}", "ratio", wall, "lower", extra),
        Result("SDK", "the same in processor time, all threads", "ratio", cpu, "lower", {"task": task, "steps": steps}),
    ]


@dataclass(frozen=True)
class _Run:
    wall_s: float
    cpu_s: float
    told: float
    dropped: int


class _Watch:
    """Counts processor time from the first step to the last; asked before each step whether to stop."""

    def __init__(self) -> None:
        self._first: float | None = None
        self.cpu_s = 0.0

    def look(self) -> bool:
        now = time.process_time()
        if self._first is None:
            self._first = now
        self.cpu_s = now - self._first
        return False
