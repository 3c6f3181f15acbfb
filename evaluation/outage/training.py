"""A training process that trains on request. Not in `__main__`, which a spawned process does not import."""

import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from tamiyo.evaluation.bench.host import BLOCK
from tamiyo.host import HostSettings, KafkaTransport
from tamiyo.host._reference.tasks import load_task
from tamiyo.host._reference.train import Workload, steps
from tamiyo.schemas.kafka import KafkaSettings
from tamiyo.streams.admin.brokers import LocalKafka


@dataclass(frozen=True)
class Turn:
    """`BLOCK` steps of one network."""

    seconds: float
    longest_step_s: float
    published: int
    dropped: int
    """Records dropped since training began."""


def _train(pipe: Connection, task: str, bootstrap_servers: str, folder: str) -> None:
    """Train as many steps as each message of the pipe requests; 0 ends the process."""
    torch.set_num_threads(1)
    workload = Workload.of(load_task(task), seed=0, steps=1_000_000)
    settings = HostSettings(store_url=f"file://{folder}", drain_s=0.0, flush_timeout_s=1.0)
    transport = KafkaTransport(KafkaSettings(bootstrap_servers=bootstrap_servers))
    with workload.attach(run_id=f"outage-{Path(folder).name}", settings=settings, transport=transport) as handle:
        training = steps(workload, handle)
        while length := pipe.recv():
            longest, began = 0.0, time.perf_counter()
            before = began
            for _ in range(length):
                next(training)
                now = time.perf_counter()
                longest, before = max(longest, now - before), now
            stats = handle.stats
            pipe.send(Turn(before - began, longest, stats.published_records, stats.dropped_records))


class Training:
    """The process that trains one network."""

    def __init__(self, task: str, broker: LocalKafka, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, task, broker.bootstrap_servers, str(folder))
        self._process: BaseProcess = context.Process(target=_train, args=arguments, daemon=True)
        self._process.start()
        theirs.close()  # so that `recv` raises when the process ends

    def turn(self) -> Turn:
        """Train one turn; raises RuntimeError if the process has ended."""
        try:
            self._pipe.send(BLOCK)
            turn: Turn = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            raise RuntimeError(f"a training process ended with {self._process.exitcode}") from None
        return turn

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._pipe.send(0)
        self._process.join(10)
        self._process.kill()
