"""A broker and processes to measure: start them, publish to them, wait for their outputs, read their cost."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil
from confluent_kafka.admin import AdminClient, NewTopic

from tamiyo.evaluation.common.measure import Spent, cpu_seconds
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.errors import BrokerError, ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.brokers import EmbeddedBroker, LocalKafka, kafka_home
from tamiyo.streams.admin.topics import Topics

PARTITIONS = 4  # of every topic of the embedded broker
START_S = 90.0  # a process imports torch and joins a group, on a machine that may be busy
TIMEOUT_S = 120.0
TOPICS_S = 20.0
BrokerKind = Literal["auto", "embedded", "local"]


@dataclass(frozen=True)
class Message:
    """One message to publish."""

    topic: str
    partition: int
    key: str
    value: bytes
    time_ms: int


@dataclass(frozen=True)
class Broker:
    """A running broker."""

    kind: str
    bootstrap_servers: str
    node: LocalKafka | None = None
    """The real one."""

    @property
    def kafka(self) -> KafkaSettings:
        """Return the settings that reach it."""
        return KafkaSettings(bootstrap_servers=self.bootstrap_servers)

    def add_topics(self, names: Sequence[str]) -> None:
        """Create topics that are not in the catalogue, with `PARTITIONS` each, and wait until the broker lists them.

        Raises:
            BrokerError: They are not listed after `TOPICS_S`.
        """
        admin = AdminClient(self.kafka.librdkafka())
        if self.kind == "embedded":
            for name in names:  # the embedded broker creates a topic when it is named
                admin.list_topics(name, timeout=10)
            return
        for future in admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names]).values():
            future.result()
        deadline = time.monotonic() + TOPICS_S
        while not set(names) <= admin.list_topics(timeout=10).topics.keys():
            if time.monotonic() > deadline:
                raise BrokerError(f"{', '.join(names)} did not appear within {TOPICS_S:.0f} s")
            time.sleep(0.05)


@contextmanager
def broker(kind: BrokerKind) -> Iterator[Broker]:
    """Run a broker with the catalogue's topics; auto: Kafka from KAFKA_HOME if that is set, else the embedded one."""
    home = kafka_home()
    if kind == "local" and home is None:
        raise ConfigurationError("--broker local needs KAFKA_HOME, the folder of an unpacked Kafka release; set it")
    real = home is not None and kind != "embedded"
    with LocalKafka(home) if real and home is not None else EmbeddedBroker() as running:
        node = running if isinstance(running, LocalKafka) else None
        started = Broker("local" if node else "embedded", running.bootstrap_servers, node)
        # Simulated telemetry has old times, by which a broker would delete it.
        Topics(started.kafka, TopicNames(prefix="")).create(partitions=PARTITIONS, retention_ms=-1)
        yield started


@dataclass(frozen=True)
class Measured:
    """A measured process."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path
    port: int = 0
    """Port of its /metrics; 0: it has none."""

    def check(self) -> None:
        """Raise BrokerError with the end of its log if it has ended."""
        if self.process.poll() is not None:
            words = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise BrokerError(f"{self.name} ended with status {self.process.returncode}:\n{words}")

    @property
    def cpu_s(self) -> float:
        """Return the processor seconds of all its threads so far."""
        return cpu_seconds([psutil.Process(self.process.pid)])

    @property
    def rss_bytes(self) -> int:
        """Return its resident memory."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


@contextmanager
def running(name: str, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[Measured]:
    """Run `python -m module arguments` until the block ends, then stop it, with SIGKILL if SIGTERM does not."""
    with tempfile.TemporaryDirectory(prefix="tamiyo-bench-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 (our own modules, no shell)
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                cwd=folder,  # files that frameworks leave are removed with it
                start_new_session=True,
            )
        try:
            yield Measured(name, process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def worker(where: Broker, stages: Sequence[str], store: str) -> Iterator[Measured]:
    """Run stages in one worker process; the block begins when it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = {"TAMIYO_STORE_URL": store, "TAMIYO_TOPIC_PREFIX": "", "OMP_NUM_THREADS": "1"}
    arguments = ["worker", "--no-supervise", "--http-port", str(port), "--bootstrap-servers", where.bootstrap_servers]
    for stage in stages:
        arguments += ["--stage", stage]
    with running(f"worker ({', '.join(stages)})", "tamiyo.streams.cli", arguments, environment) as process:
        _wait_until(lambda: _is_ready(f"http://127.0.0.1:{port}/readyz"), process, START_S, "ready")
        yield replace(process, port=port)


def publish(where: Broker, messages: Iterable[Message], options: Mapping[str, Any] | None = None) -> None:
    """Publish messages, in order a partition, and wait until the broker has them all.

    Args:
        where: The broker.
        messages: What to publish.
        options: Further settings of librdkafka.
    """
    settings = {"queue.buffering.max.messages": 1_000_000, **(options or {})}
    producer = AwaitedProducer(where.kafka, timeout_s=TIMEOUT_S, options=settings)
    for each in messages:
        producer.produce(each.topic, each.value, each.key, partition=each.partition, timestamp_ms=each.time_ms)
    producer.flush()


class Counter:
    """Reads a topic from its current end and counts the different messages of requested runs."""

    def __init__(self, where: Broker, topic: str) -> None:
        self._reader = PartitionReader(where.kafka, options={"fetch.wait.max.ms": 20})
        # Offsets, not OFFSET_END: that is resolved at the first fetch, when the load may already be published.
        self._reader.assign({(topic, number): self._reader.bounds(topic, number)[1] for number in range(PARTITIONS)})
        self._seen: set[tuple[str, str]] = set()

    def wait(
        self, processes: Sequence[Measured], runs: Sequence[str], expected: int, identify: Callable[[bytes], str]
    ) -> None:
        """Wait until `expected` different messages of `runs` have arrived.

        A message belongs to the run that its key begins with, up to a slash.

        Raises:
            BrokerError: one of the processes ended, or no message arrived for `TIMEOUT_S`.
        """
        wanted = set(runs)
        deadline = time.monotonic() + TIMEOUT_S
        while (found := sum(run in wanted for run, _ in self._seen)) < expected:
            messages: list[Any] = self._reader.poll()
            for process in processes:
                process.check()
            for message in messages:
                key = message.key().decode()
                self._seen.add((key.split("/")[0], identify(message.value())))
            if messages:
                deadline = time.monotonic() + TIMEOUT_S
            elif time.monotonic() > deadline:
                names = " and ".join(process.name for process in processes)
                raise BrokerError(f"{names} published {found} of {expected} records and then nothing more")

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()


def measure(process: Measured, work: Callable[[], None]) -> Spent:
    """Return the cost of `process` while `work` runs in this process and waits for it."""
    wall, cpu = time.perf_counter(), process.cpu_s
    work()
    return Spent(time.perf_counter() - wall, process.cpu_s - cpu)


def _wait_until(condition: Callable[[], bool], process: Measured, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        process.check()
        if time.monotonic() > deadline:
            raise BrokerError(f"{process.name} was not {what} within {timeout_s:.0f} s")
        time.sleep(0.1)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 (the loopback)
            return True
    except (urllib.error.URLError, OSError):
        return False
