"""What the SDK costs a training step: the reference host with it and without, in turns."""

import tempfile
import uuid

from tamiyo.evaluation.bench_measure import Result
from tamiyo.host.settings import HostSettings
from tamiyo.host.tasks import load_task
from tamiyo.host.train import TrainResult, Workload, train
from tamiyo.schemas.kafka import KafkaSettings


def overhead(bootstrap_servers: str, *, task: str, steps: int, repeats: int) -> list[Result]:
    """Train `repeats` pairs of `steps` steps; nobody answers, so both networks do the same work.

    In turns, and paired: what else the machine does hits both of a pair alike.
    """
    prepared = load_task(task)
    kafka = KafkaSettings(bootstrap_servers=bootstrap_servers)

    with tempfile.TemporaryDirectory(prefix="tamiyo-bench-") as folder:
        settings = HostSettings(store_url=f"file://{folder}", drain_s=0.0)

        def attached() -> TrainResult:
            run_id = f"bench-host-{uuid.uuid4().hex[:8]}"
            return train(
                prepared,
                steps=steps,
                attach_with=lambda workload: _attach(workload, run_id, settings, kafka),
                validate_interval=steps + 1,
            )

        def static() -> TrainResult:
            return train(prepared, steps=steps, validate_interval=steps + 1)

        static(), attached()  # warm-up
        pairs = [(static(), attached()) for _ in range(repeats)]
    ratios = tuple(with_sdk.wall_seconds / without.wall_seconds - 1 for without, with_sdk in pairs)
    extra = {
        "task": task,
        "steps": steps,
        "step_ms_without": min(without.wall_seconds for without, _ in pairs) / steps * 1000,
        "step_ms_with": min(with_sdk.wall_seconds for _, with_sdk in pairs) / steps * 1000,
        "told_by_the_sdk": [with_sdk.overhead_ratio for _, with_sdk in pairs],
        "dropped_records": sum(with_sdk.dropped_records for _, with_sdk in pairs),
        "budget": 0.10,
    }
    return [Result("SDK", f"overhead on the step, {task}", "ratio", ratios, "lower", extra)]


def _attach(workload: Workload, run_id: str, settings: HostSettings, kafka: KafkaSettings):  # type: ignore[no-untyped-def]
    return workload.attach(run_id=run_id, settings=settings, kafka=kafka)
