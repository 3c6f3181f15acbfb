"""Runs all of Tamiyo on one machine, with a training run and its static twin, for `tamiyo demo`.

The embedded broker runs in this process. The stages, the learner and the training runs are processes of the same
command line that a production installation uses.
"""

import json
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.brokers import EmbeddedBroker, free_ports
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.demo import report as reports
from tamiyo.streams.demo.display import Display
from tamiyo.streams.demo.observer import Observer
from tamiyo.streams.process.children import Children
from tamiyo.streams.process.interrupts import stoppable
from tamiyo.streams.settings import LearnerSettings

# Stages by process: two processes for two cores, each with work for about half a core.
WORKERS: dict[str, tuple[str, ...]] = {
    "worker-signals": ("intake", "windows"),
    "worker-policy": ("graphs", "decisions", "kernels", "rewards"),
}
READY_TIMEOUT_S = 90.0
DRAIN_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 3.0  # to wait for the last records after Ctrl-C
POLL_S = 0.1
QUICK_STEPS = 1_000
FULL_STEPS = 3_000


@dataclass(frozen=True, slots=True)
class Demo:
    """The parameters of a demo."""

    task: str = "mnist1d"
    seed: int = 0
    steps: int = FULL_STEPS
    runs: int = 1

    def run(self, console: Console, kafka: KafkaSettings | None = None) -> reports.Report:
        """Run the demo. Ctrl-C stops it, and the report covers what has happened until then.

        Args:
            console: receives the progress.
            kafka: the broker to use; by default an embedded one.

        Returns:
            The report.
        """
        started = time.monotonic()
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tamiyo-demo-")))
            if kafka is None:
                broker = stack.enter_context(EmbeddedBroker())
                kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
            names = TopicNames(prefix="")
            Topics(kafka, names).create()
            environment = {
                "TAMIYO_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
                "TAMIYO_TOPIC_PREFIX": "",
                "TAMIYO_REGISTRY_URL": "",
                "TAMIYO_STORE_URL": f"file://{folder}/store",
                "PYTHONUNBUFFERED": "1",
            }
            display = Display(console, self.steps, LearnerSettings().initial_policy)
            children = stack.enter_context(Children(folder, environment))
            observer = stack.enter_context(Observer(kafka, names, display.take))
            stopped = stack.enter_context(stoppable())
            session = _DemoSession(self, console, children, observer, folder, stopped)
            try:
                session.run(display)
                complete = True
            except KeyboardInterrupt:
                console.print("\n[yellow]stopping; the report covers the demo so far[/]")
                session.stop_early()
                complete = False
            return session.report(round(time.monotonic() - started, 3), complete)


class _DemoSession:
    """The processes of one demo."""

    def __init__(
        self,
        demo: Demo,
        console: Console,
        children: Children,
        observer: Observer,
        folder: Path,
        stopped: threading.Event,
    ) -> None:
        self._demo = demo
        self._console = console
        self._children = children
        self._observer = observer
        self._folder = folder
        self._stopped = stopped
        self._ports = dict(zip(WORKERS, free_ports(len(WORKERS)), strict=True))
        self._seeds = range(demo.seed, demo.seed + demo.runs)

    def run(self, display: Display) -> None:
        self._console.print(f"starting the broker, {len(WORKERS)} workers and the learner ...")
        for name, stages in WORKERS.items():
            chosen = [argument for stage in stages for argument in ("--stage", stage)]
            self._children.start(name, ["worker", *chosen, "--http-port", str(self._ports[name])])
        self._children.start("learner", ["learner"])
        self._wait(self._ready, READY_TIMEOUT_S, "the stages to become ready")
        with display.progress:
            for seed in self._seeds:
                self._train(seed, "host")
            self._wait(lambda: not any(self._children.running(f"host-{seed}") for seed in self._seeds), None, "")
            self._console.print("training finished; training the static twins and waiting for the last rewards ...")
            for seed in self._seeds:
                self._train(seed, "static")
            self._wait(lambda: not any(self._children.running(f"static-{seed}") for seed in self._seeds), None, "")
            try:
                self._wait(self._drained, DRAIN_TIMEOUT_S, "the last rewards")
            except TimeoutError as error:
                self._console.print(f"[yellow]{error}[/]")

    def stop_early(self) -> None:
        """Stop the training runs in order, so that they write their results, and wait for their last records."""
        self._children.stop([name for name in self._children.names() if name not in (*WORKERS, "learner")])
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while not self._drained() and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def _train(self, seed: int, side: str) -> None:
        demo = self._demo
        arguments = ["train", "--task", demo.task, "--seed", str(seed), "--steps", str(demo.steps)]
        arguments += ["--run-id", f"{demo.task}-{seed}", "--report", str(self._folder / f"{side}-{seed}.json")]
        self._children.start(f"{side}-{seed}", [*arguments, *(["--static"] if side == "static" else [])])

    def _wait(self, done: Callable[[], bool], timeout_s: float | None, what: str) -> None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not done():
            if self._stopped.is_set():
                raise KeyboardInterrupt
            self._children.check([*WORKERS, "learner"])
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"timed out after {timeout_s:.0f} s waiting for {what}")
            time.sleep(POLL_S)

    def _ready(self) -> bool:
        try:
            pages = [httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=1.0) for port in self._ports.values()]
        except httpx.TransportError:
            return False
        return (
            all(page.status_code == 200 for page in pages) and self._observer.records["tamiyo.policy.checkpoints"] > 0
        )

    def _drained(self) -> bool:
        """Return whether all runs have ended, and every decision has its outcome and its complete reward."""
        seen = self._observer
        adaptations = {d.decision_id for d in seen.decisions.values() if d.type != "no_op"}
        return (
            {f"{self._demo.task}-{seed}" for seed in self._seeds} <= seen.finished_graphs
            and len(seen.decisions) == len(seen.ids["tamiyo.model.graphs"])
            and adaptations <= seen.outcomes.keys()
            and seen.decisions.keys() <= seen.rewards.keys()
            and all(reward.complete for reward in list(seen.rewards.values()))
        )

    def _metrics(self) -> list[str]:
        pages = []
        for port in self._ports.values():
            try:
                pages.append(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=2.0).text)
            except httpx.TransportError:
                continue  # stopped before it was ready, so it has no measurements
        return pages

    def report(self, wall_seconds: float, complete: bool) -> reports.Report:
        pages = self._metrics()
        runs = [self._run(seed) for seed in self._seeds]
        return reports.Report(
            task=self._demo.task,
            seed=self._demo.seed,
            wall_seconds=wall_seconds,
            complete=complete,
            host=runs[0]["host"],
            static=runs[0]["static"],
            runs=runs,
            counts=reports.counts(self._observer),
            latency_ms=reports.latencies(pages),
            decisions=reports.decisions(self._observer),
        )

    def _run(self, seed: int) -> dict[str, Any]:
        sides = {side: self._result(self._folder / f"{side}-{seed}.json") for side in ("host", "static")}
        return {"run_id": f"{self._demo.task}-{seed}", "seed": seed, **sides}

    @staticmethod
    def _result(path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        result: dict[str, Any] = json.loads(path.read_text())
        return result
