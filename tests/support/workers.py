"""Worker processes with the pair stage (`tests/support/pairs.py`), and the numbers they are fed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.telemetry import CacheHitRates
from tamiyo.streams.admin.brokers import free_ports
from tests.support.kafka_log import Heard
from tests.support.pairs import FACTORS, LETTERS, NUMBERS, SUMS, number

ROOT = Path(__file__).parents[2]
TOPICS = (NUMBERS, LETTERS, FACTORS, SUMS)
ORDINARY = 600  # numbers below it mean nothing to the stage
RUNS = [f"run-{index}" for index in range(8)]


class Process:
    """A worker with the pair stage, as a process."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames, folder: Path, *arguments: str, **settings: Any) -> None:
        """`settings` are the worker's; those that begin with TAMIYO_ are taken as they are."""
        (self.port,) = free_ports(1)
        self.log = folder / f"worker-{self.port}.log"
        environment = {
            **os.environ,
            "TAMIYO_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "TAMIYO_TOPIC_PREFIX": names.prefix,
            "TAMIYO_WORKER_HTTP_PORT": str(self.port),
            "TAMIYO_WORKER_COMMIT_INTERVAL_S": "0.2",
            "TAMIYO_WORKER_STATE_DIR": str(folder / "state"),
            **{
                name if name.startswith("TAMIYO_") else f"TAMIYO_WORKER_{name.upper()}": str(value)
                for name, value in settings.items()
            },
        }
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.pairs", *arguments],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
            )

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=5)

    def metric(self, name: str) -> float:
        """Sum a metric's samples."""
        lines = [line for line in self.get("/metrics").text.splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def wait_until_ready(self, partitions: int | None = None, timeout_s: float = 40.0) -> "Process":
        """Wait until /readyz agrees, with so many partitions."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                answer = self.get("/readyz")
            except httpx.HTTPError:
                time.sleep(0.1)
                continue
            held = answer.json()["stages"].get("pairs", {}).get("partitions", [])
            if answer.status_code == 200 and (partitions is None or len(held) == partitions):
                return self
            time.sleep(0.1)
        raise AssertionError(f"not ready: {self.log.read_text()}")

    def end(self, number: int, timeout_s: float = 15.0) -> int:
        """Send a signal and wait for the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


def numbers(first: int, last: int, runs: list[str] = RUNS) -> list[CacheHitRates]:
    return [number(run, step, step % ORDINARY) for step in range(first, last) for run in runs]


def sums(heard: list[Heard]) -> dict[tuple[str, int], int]:
    """Return what was said of each pair, the first that was said; a pair that was said differently fails."""
    found: dict[tuple[str, int], int] = {}
    for each in heard:
        record = each.record(CacheHitRates)
        assert found.setdefault((record.run_id, record.step), record.hits) == record.hits
    return found


def expected(last: int, runs: list[str] = RUNS) -> dict[tuple[str, int], int]:
    return {(run, step): 2 * (step % ORDINARY) + 1 for step in range(0, last - 1, 2) for run in runs}


def enough(count: int) -> Callable[[list[Heard]], bool]:
    return lambda heard: len({each.identity for each in heard}) >= count
