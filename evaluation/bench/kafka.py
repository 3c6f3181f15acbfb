"""A broker and processes to measure: start them, publish to them, wait for what they publish, read their cost."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tamiyo.evaluation.common.measure import Spent, cpu_seconds
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.errors import BrokerError, ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.brokers import EmbeddedBroker, LocalKafka, kafka_home
from tamiyo.streams.admin.topics import Topics

PARTITIONS = 4  # what the embedded broker gives every topic
START_S = 90.0  # a process imports torch and joins a group, on a machine that does other things too
PATIENCE_S = 120.0
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
    """A broker that runs."""

    kind: str
    bootstrap_servers: str

    @property
    def kafka(self) -> KafkaSettings:
        """Return how to reach it."""
        return KafkaSettings(bootstrap_servers=self.bootstrap_servers)

    def add_topics(self, names: Sequence[str]) -> None:
        """Make topics that are not in the catalogue, with `PARTITIONS` each."""
        admin = AdminClient(self.kafka.librdkafka())
        if self.kind == "embedded":
            for name in names:  # named is made
                admin.list_topics(name, timeout=10)
            return
        for future in admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names]).values():
            future.result()


@contextmanager
def broker(kind: BrokerKind) -> Iterator[Broker]:
    """Run a broker with the catalogue's topics; auto: Kafka from KAFKA_HOME where that is set, else the embedded."""
    home = kafka_home()
    if kind == "local" and home is None:
        raise ConfigurationError("--broker local needs KAFKA_HOME to name an unpacked Kafka release")
    real = home is not None and kind != "embedded"
    with LocalKafka(home) if real and home is not None else EmbeddedBroker() as running:
        started = Broker("local" if real else "embedded", running.bootstrap_servers)
        Topics(started.kafka, TopicNames(prefix="")).create(partitions=PARTITIONS)
        yield started


@dataclass(frozen=True)
class Measured:
    """A process under measurement."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def check(self) -> None:
        """Raise BrokerError with its last words if it has ended."""
        if self.process.poll() is not None:
            words = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise BrokerError(f"{self.name} ended with status {self.process.returncode}:\n{words}")

    @property
    def cpu_s(self) -> float:
        """Processor seconds spent so far, by it and its threads."""
        return cpu_seconds([psutil.Process(self.process.pid)])


@contextmanager
def running(name: str, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[Measured]:
    """Run `python -m module arguments` until the block ends, then stop it, by force if it must be."""
    with tempfile.TemporaryDirectory(prefix="tamiyo-bench-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 (our own modules, no shell)
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                cwd=folder,  # what frameworks leave behind goes with it
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
        _wait_until(lambda: _answers(f"http://127.0.0.1:{port}/readyz"), process, START_S, "ready")
        yield process


def publish(where: Broker, messages: Iterable[Message]) -> None:
    """Publish messages, in order a partition, and wait until the broker has them all."""
    producer = AwaitedProducer(where.kafka, timeout_s=PATIENCE_S, options={"queue.buffering.max.messages": 1_000_000})
    for each in messages:
        producer.produce(each.topic, each.value, each.key, partition=each.partition, timestamp_ms=each.time_ms)
    producer.flush()


class Counter:
    """Reads a topic from where it ends now and counts the messages of the runs asked for, repeats left out."""

    def __init__(self, where: Broker, topic: str) -> None:
        self._consumer = Consumer(
            where.kafka.librdkafka(
                **{"group.id": "tamiyo-bench", "enable.auto.commit": False, "fetch.wait.max.ms": 20, "log_level": 0}
            )
        )
        # Numbers, not OFFSET_END: that is looked up at the first fetch, when the load may be there already.
        self._consumer.assign([TopicPartition(topic, number, self._end(topic, number)) for number in range(PARTITIONS)])
        self._seen: set[tuple[str, str]] = set()

    def _end(self, topic: str, partition: int) -> int:
        deadline = time.monotonic() + 20
        while True:
            try:
                _, end = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
                return int(end)
            except KafkaException:  # a topic just made may not have elected its leaders yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def wait(self, process: Measured, runs: Sequence[str], expected: int, identify: Callable[[bytes], str]) -> None:
        """Return when `expected` different messages of `runs` have come.

        A message belongs to the run that its key begins with, up to a slash. Raises BrokerError when the process ends
        or nothing comes for `PATIENCE_S`.
        """
        wanted = set(runs)
        deadline = time.monotonic() + PATIENCE_S
        while (found := sum(run in wanted for run, _ in self._seen)) < expected:
            messages = self._consumer.consume(500, 0.2)
            process.check()
            for message in messages:
                if message.error():
                    raise KafkaException(message.error())
                key = message.key().decode()
                self._seen.add((key.split("/")[0], identify(message.value())))
            if messages:
                deadline = time.monotonic() + PATIENCE_S
            elif time.monotonic() > deadline:
                raise BrokerError(f"{process.name} published {found} of {expected} records and then nothing more")

    def close(self) -> None:
        """Stop reading."""
        self._consumer.close()


def measure(process: Measured, work: Callable[[], None]) -> Spent:
    """Return what `process` spent while `work`, here, drove it and waited for it."""
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


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 (the loopback)
            return True
    except (urllib.error.URLError, OSError):
        return False
