"""Worker processes with the pair stage (`tests/support/pairs.py`), and numbers to feed them."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.telemetry import CacheHitRates
from tamiyo.streams.admin.brokers import free_ports
from tests.support.kafka_log import LoggedMessage
from tests.support.pairs import FACTORS, LETTERS, NUMBERS, SUMS, number

ROOT = Path(__file__).parents[2]
TOPICS = (NUMBERS, LETTERS, FACTORS, SUMS)
ORDINARY = 554  # numbers below it have no special meaning to the stage
RUNS = [f"run-{index}" for index in range(8)]


class Process:
    """A worker with the pair stage, as a process."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames, folder: Path, *arguments: str, **settings: Any) -> None:
        """`settings` are the worker's; those that begin with TAMIYO_ or OTEL_ are environment names."""
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
                name if name.startswith(("TAMIYO_", "OTEL_")) else f"TAMIYO_WORKER_{name.upper()}": str(value)
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

    def metric(self, name: str, **labels: str) -> float:
        """Sum a series' samples with these labels, of which there is at least one."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        samples = [each for family in families for each in family.samples if each.name == name]
        return sum([each.value for each in samples if labels.items() <= each.labels.items()] or [math.nan])

    def wait_until_ready(self, partitions: int | None = None, timeout_s: float = 40.0) -> "Process":
        """Wait until /readyz reports ready, with so many partitions."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                response = self.get("/readyz")
            except httpx.HTTPError:
                time.sleep(0.1)
                continue
            held = response.json()["stages"].get("pairs", {}).get("partitions", [])
            if response.status_code == 200 and (partitions is None or len(held) == partitions):
                return self
            time.sleep(0.1)
        raise AssertionError(f"not ready: {self.log.read_text()}")

    def end(self, number: int, timeout_s: float = 15.0) -> int:
        """Send a signal and wait for the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


def numbers(first: int, last: int, runs: list[str] = RUNS) -> list[CacheHitRates]:
    return [number(run, step, step % ORDINARY) for step in range(first, last) for run in runs]


def sums(messages: list[LoggedMessage]) -> dict[tuple[str, int], int]:
    """Return the sum of each pair; a pair that was published with two different sums fails."""
    found: dict[tuple[str, int], int] = {}
    for each in messages:
        record = each.record(CacheHitRates)
        assert found.setdefault((record.run_id, record.step), record.hits) == record.hits
    return found


def expected(last: int, runs: list[str] = RUNS) -> dict[tuple[str, int], int]:
    return {(run, step): 2 * (step % ORDINARY) + 1 for step in range(0, last - 1, 2) for run in runs}


def enough(count: int) -> Callable[[list[LoggedMessage]], bool]:
    return lambda messages: len({each.identity for each in messages}) >= count
