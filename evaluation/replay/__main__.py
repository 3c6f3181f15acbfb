"""`make replay`: record live runs, replay them at several speeds with several workers, and compare byte by byte.

On a real Kafka from KAFKA_HOME: real training runs while a learner releases policies, and simulated runs with errors,
cache frames and orders. Everything is recorded, and replayed from telemetry once for each speed and number of workers.
Windows, graphs and decisions are compared as bytes, by id.
"""

import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tamiyo.evaluation.common.command_line import run_program
from tamiyo.evaluation.common.live_runs import Live, wait, workers
from tamiyo.evaluation.common.program import begin
from tamiyo.evaluation.common.report import ReportFile, write_report
from tamiyo.evaluation.common.simulated_runs import Load
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.brokers import LocalKafka
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.demo.observer import Observer as TopicsObserver
from tamiyo.streams.recording.recorder import Recorder
from tamiyo.streams.recording.recording import Recording
from tamiyo.streams.recording.topic_reader import Selection
from tamiyo.streams.replay.cleanup import discard
from tamiyo.streams.replay.compare import Difference, RecordingSide, compare
from tamiyo.streams.replay.flow import Flow
from tamiyo.streams.replay.levels import ReplaySource, ReplayTarget
from tamiyo.streams.replay.plan import Plan
from tamiyo.streams.replay.replayer import Replayed, Replayer

FORMAT = 1
LIVE = TopicNames(prefix="live.")
SPEEDS = ("1", "100", "max")
WORKERS = (1, 4)
SIMULATED = Load(runs=4, layers=12, frames=300, name="simulated")
TRAIN_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Case:
    """One replay: its options, and how its outputs compare with the recording."""

    speed: str
    workers: int
    replayed: Replayed
    differences: Sequence[Difference]

    @property
    def equal(self) -> bool:
        """Return whether the replay published exactly the recorded records, to the byte."""
        return all(each.equal and each.same for each in self.differences)


class Quiet:
    """An observer of a replay that prints nothing."""

    def phase(self, description: str) -> None:
        """Print nothing."""

    def published(self, count: int) -> None:
        """Print nothing."""

    def computed(self, count: int) -> None:
        """Print nothing."""


def replay(
    recording: Path, kafka: KafkaSettings, *, speed: str, workers: int, level: ReplaySource = ReplaySource.TELEMETRY
) -> Case:
    """Replay a recording from `level` under a temporary prefix, and compare."""
    names = TopicNames(prefix=f"replay-{speed}-{workers}-{level}.")
    flow = Flow.between(level, ReplayTarget.DECISIONS)
    plan = Plan(flow, names, None if speed == "max" else float(speed), workers)
    source = Recording(recording)
    replayer = Replayer(source, plan, kafka, TopicNames(prefix=source.manifest.prefix), observer=Quiet())
    replayer.check()
    replayed = replayer.run()
    with tempfile.TemporaryDirectory(prefix="tamiyo-replay-") as folder:
        saved = Path(folder) / "replayed"
        Recorder(saved, kafka, names, Selection(topics=tuple(topic.name for topic in flow.outputs))).run()
        discard(names.prefix, kafka, LIVE)
        topics = [topic for topic in flow.outputs if "signals" not in topic.name]
        found = compare(RecordingSide(source), RecordingSide(Recording(saved)), topics)
    return Case(speed, workers, replayed, found)


def simulated(live: Live, load: Load, seconds: float, *, new_policy: int | None = None) -> None:
    """Publish simulated runs under every kind of order and, near their end, under another policy."""
    first = load.run_ids[0]
    live.simulate(
        load,
        seconds=seconds,
        events=[
            lambda: live.order("*", paused=True, reason="a pause for all"),
            lambda: live.order("*"),
            lambda: live.order(first, dry_run=True, protected_layers=["layers.0"]),
            lambda: live.order(first),
            *([lambda: live.release(new_policy)] if new_policy is not None else []),
        ],
    )


@contextmanager
def _plain_environment() -> Any:
    # Settings of the user's installation must not reach this one.
    kept = {name: value for name, value in os.environ.items() if name.startswith("TAMIYO_")}
    for name in kept:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(kept)


def _live_runs(live: Live, folder: Path, store: str, *, steps: int, seeds: Sequence[int], seconds: float) -> None:
    """Train real networks with the whole pipeline, then publish simulated runs; return when all is decided."""
    everything = ("intake", "windows", "graphs", "decisions", "kernels", "rewards")
    runs = {f"digits-{seed}" for seed in seeds}
    with workers(live, folder, store, everything) as children, TopicsObserver(live.kafka, live.names) as seen:
        children.start("learner", ["learner"])
        wait(lambda: bool(seen.policy_versions or seen.records["tamiyo.policy.checkpoints"]), children, "a policy")
        for seed in seeds:
            arguments = ["train", "--task", "digits", "--seed", str(seed), "--steps", str(steps)]
            children.start(f"run-{seed}", [*arguments, "--run-id", f"digits-{seed}"])
        deadline = time.monotonic() + TRAIN_TIMEOUT_S
        for seed in seeds:
            while children.running(f"run-{seed}") and time.monotonic() < deadline:
                time.sleep(0.5)
        simulated(live, SIMULATED, seconds)
        runs |= set(SIMULATED.run_ids)

        def drained() -> bool:
            return runs <= seen.finished_graphs and len(seen.decisions) == len(seen.ids["tamiyo.model.graphs"])

        wait(drained, children, "the last decisions")


def _report(recording: Recording, cases: Sequence[Case], took: Mapping[str, float]) -> dict[str, Any]:
    manifest = recording.manifest
    counts: dict[str, int] = {}
    for part in manifest.parts:
        counts[part.topic] = counts.get(part.topic, 0) + part.messages
    times = [part.last_ms - part.first_ms for part in manifest.parts if part.first_ms is not None and part.last_ms]
    return {
        "format": FORMAT,
        "equal": all(case.equal for case in cases),
        "machine": {"python": platform.python_version(), "system": platform.system(), "cores": os.cpu_count()},
        "recorded": {
            "messages": counts,
            "partitions": manifest.partitions,
            "seconds": max(times) / 1000,
            "policy_versions": manifest.policy_versions,
        },
        "seconds": dict(took),
        "cases": [
            {
                "speed": case.speed,
                "workers": case.workers,
                "equal": case.equal,
                "seconds": case.replayed.seconds,
                "held_back": case.replayed.waits,
                "rejected": dict(case.replayed.rejected),
                "differences": [asdict(each) for each in case.differences],
            }
            for case in cases
        ],
    }


def main(
    steps: Annotated[int, typer.Option(min=100, max=100_000, help="Training steps of each real run")] = 1_000,
    runs: Annotated[int, typer.Option(min=1, max=16, help="Number of real runs")] = 2,
    seconds: Annotated[float, typer.Option(min=1, max=3_600, help="Duration of the simulated runs")] = 60.0,
    speed: Annotated[list[str] | None, typer.Option(help="Speed of a replay; repeat [default: 1, 100 and max]")] = None,
    worker: Annotated[list[int] | None, typer.Option(help="Workers of a replay; repeat [default: 1 and 4]")] = None,
    report: ReportFile = None,
) -> None:
    """Record live runs on a real Kafka, replay them, compare; exit 1 if a byte differs.

    Examples: `make replay` · `make replay ARGS="--steps 500 --runs 1 --speed max --worker 1"` ·
    `make replay ARGS="--report evaluation/results/replay.json"`
    """
    console, home = begin(report)
    with (
        _plain_environment(),
        LocalKafka(home) as broker,
        tempfile.TemporaryDirectory(prefix="tamiyo-proof-") as temporary,
    ):
        folder, kafka = Path(temporary), KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        store = f"file://{folder}/store"
        Topics(kafka, LIVE).create(partitions=4)
        began = time.monotonic()
        _live_runs(Live(kafka, LIVE, store), folder, store, steps=steps, seeds=range(runs), seconds=seconds)
        took = {"live": round(time.monotonic() - began, 1)}
        recording = folder / "recording"
        began = time.monotonic()
        Recorder(recording, kafka, LIVE, Selection(), checkpoint_url=f"{store}/checkpoints").run()
        took["recording"] = round(time.monotonic() - began, 1)
        console.print(f"{took['live']} s of live runs recorded in {took['recording']} s")
        cases = []
        for each in speed or SPEEDS:
            for number in worker or WORKERS:
                case = replay(recording, kafka, speed=each, workers=number)
                cases.append(case)
                same = ", ".join(f"{one.same:,} {one.topic.rsplit('.', 1)[1]}" for one in case.differences)
                verdict = "[green]equal[/]" if case.equal else "[red]different[/]"
                console.print(f"speed {each}, {number} workers: {verdict} ({same}) in {case.replayed.seconds} s")
                for one in case.differences:
                    if not one.equal:
                        console.print(str(one))
        result = _report(Recording(recording), cases, took)
    write_report(report, result, console)
    if not result["equal"]:
        sys.exit(1)


if __name__ == "__main__":
    run_program(main)
