"""A live installation to record: workers, simulated runs, policy releases and standing orders."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tamiyo.evaluation.common.policies import release
from tamiyo.evaluation.common.simulated_runs import EPOCH_MS, STEP_MS, TOPICS, Load, frames, layer_names, topology
from tamiyo.schemas.adaptation import ControlCommand
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.telemetry import CacheHitRates, ErrorRecoveryEvent
from tamiyo.schemas.topics import (
    CHECKPOINTS,
    DECISIONS,
    GRAPHS,
    TELEMETRY,
    TOPOLOGY,
    Topic,
)
from tamiyo.streams.admin.control import publish_order
from tamiyo.streams.messages import Message
from tamiyo.streams.process.children import Children
from tamiyo.streams.recording.topic_reader import Selection, TopicReader
from tamiyo.streams.replay.ordering import IntakeOrder
from tamiyo.streams.settings import WindowSettings
from tamiyo.streams.stages.registry import STAGES

TIMEOUT_S = 120.0
POLL_S = 0.2


class Live:
    """Publishes telemetry, policies and orders to the topics of one installation."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames, store: str) -> None:
        self.kafka = kafka
        self.names = names
        self._store = store
        self._partitions: dict[bytes | None, int] = {}
        self._producer = AwaitedProducer(kafka, timeout_s=TIMEOUT_S)

    def publish(self, topic: Topic, record: Record, key: str) -> None:
        """Publish a record now."""
        self._producer.produce(self.names.full(topic.name), encode(record), key)

    def flush(self) -> None:
        """Wait for all deliveries."""
        self._producer.flush()

    def release(self, version: int) -> None:
        """Write an untrained policy into the store and announce it."""
        announced = release(self._store, version)
        self.publish(CHECKPOINTS, announced, announced.name)
        self.flush()

    def order(self, run_id: str, **fields: Any) -> None:
        """Give a standing order; it applies to decisions made some tenths of a second later."""
        order = ControlCommand(run_id=run_id, time_ms=time.time_ns() // 1_000_000, **fields)
        publish_order(run_id, order, self.kafka, self.names)

    def simulate(
        self, load: Load, *, seconds: float, events: Sequence[Callable[[], None]] = (), cut: bool = False
    ) -> None:
        """Publish simulated runs, with cache frames and errors, as a training would.

        Errors are read before their window closes, as in a training, whose windows take seconds.

        Args:
            load: The runs.
            seconds: How long publishing takes.
            events: Called at equal intervals.
            cut: Omit the last frames, as if the runs were killed.
        """
        for run_id in load.run_ids:
            self.publish(TOPOLOGY, topology(run_id, load.layers), run_id)
        self.flush()
        due = {(number + 1) * load.frames // (len(events) + 1): event for number, event in enumerate(events)}
        group = self.names.full(STAGES["intake"].group)
        with closing(TopicReader(self.kafka, self.names)) as reader:
            there = reader.resolve(Selection(topics=tuple(topic.name for topic in TELEMETRY)))
        ends = {(each.topic, each.partition): each.end for each in there}
        with closing(IntakeOrder(self.kafka, self.names, group, WindowSettings(), ends)) as order:
            for number, together in enumerate(
                zip(*(sampled_steps(load, run) for run in range(load.runs)), strict=True)
            ):
                if number in due:
                    due[number]()
                if cut and number == load.frames - 1:
                    break
                for record in (record for each in together for record in each):
                    topic = TOPICS[type(record)]
                    value, key = encode(record), record.run_id.encode()  # type: ignore[attr-defined]
                    partition = self._partition(key)
                    message = Message(topic.name, partition, 0, 0, key, value)
                    order.before(message, self.flush)
                    self._producer.produce(self.names.full(topic.name), value, key, partition=partition)
                    order.after(message)
                self.flush()
                time.sleep(seconds / load.frames)
        self.flush()

    def drained(self, runs: Sequence[str], *, windows: int) -> bool:
        """Return whether there are at least `windows` graphs of `runs`, and a decision for each."""
        counts = {}
        with closing(TopicReader(self.kafka, self.names)) as reader:
            for topic in (GRAPHS, DECISIONS):
                ranges = reader.resolve(Selection(topics=(topic.name,)))
                counts[topic] = sum(1 for _ in reader.messages(ranges, runs=runs))
        return counts[GRAPHS] == counts[DECISIONS] >= windows

    def _partition(self, key: bytes) -> int:
        """Return a run's partition, as the broker's partitioner chose it for the topology."""
        if key not in self._partitions:
            with closing(TopicReader(self.kafka, self.names)) as reader:
                ranges = reader.resolve(Selection(topics=(TOPOLOGY.name,)))
                self._partitions = {message.key: message.partition for message in reader.messages(ranges)}
        return self._partitions[key]


def sampled_steps(load: Load, run: int) -> Iterator[list[Record]]:
    """Yield the frames of each sampled step: three, before them at some steps a cache frame or errors."""
    step: list[Record] = []
    for record in frames(load, run):
        step.append(record)
        if len(step) == 3:
            frame: Any = step[0]
            number = frame.step // load.interval
            common = {"run_id": frame.run_id, "step": frame.step, "time_ms": EPOCH_MS + STEP_MS * frame.step}
            sporadic: list[Record] = []
            if number % 5 == 2:
                sporadic.append(
                    CacheHitRates(**common, hits=number, misses=1, evictions=0, hit_rate=0.9, entries=4, capacity=8)
                )
            if number % 7 == 4:
                sporadic += [
                    ErrorRecoveryEvent(
                        **common, layer_id=layer, seed_id=0, error_type="non_finite", strategy="retry",
                        success=bool(number % 2), recovery_time_ms=0.5 + number,
                    )
                    for layer in layer_names(load.layers)[:2]
                ]  # fmt: skip
            yield [*sporadic, *step]
            step = []


@contextmanager
def workers(live: Live, logs: Path, store: str, stages: Sequence[str]) -> Iterator[Children]:
    """Run one live worker with `stages`, logging to `logs`, until the block ends."""
    environment = {
        "TAMIYO_KAFKA_BOOTSTRAP_SERVERS": live.kafka.bootstrap_servers,
        "TAMIYO_TOPIC_PREFIX": live.names.prefix,
        "TAMIYO_STORE_URL": store,
        "TAMIYO_WORKER_COMMIT_INTERVAL_S": "0.1",
        "OMP_NUM_THREADS": "1",
    }
    with Children(logs, environment) as children:
        children.start("live-worker", ["worker", *(word for name in stages for word in ("--stage", name))])
        yield children


def wait(done: Callable[[], bool], children: Children, what: str) -> None:
    """Wait until `done`; raise BrokerError on timeout, TamiyoError if a process has failed."""
    deadline = time.monotonic() + TIMEOUT_S
    while not done():
        for name in children.names():
            children.running(name)
        if time.monotonic() > deadline:
            raise BrokerError(f"timed out after {TIMEOUT_S:.0f} s waiting for {what}")
        time.sleep(POLL_S)
