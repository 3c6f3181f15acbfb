"""`tamiyo replay`: a recording through the stages again, under a topic prefix of its own.

What is published keeps its bytes, key, partition, order and Kafka time. Workers run the stages in groups of the prefix;
the end of every input is marked, and the replay is complete when the marks have come out at the other end.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
from confluent_kafka import Consumer, TopicPartition

from tamiyo.models.checkpoint_store import CheckpointStore
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import BrokerError, ConfigurationError, RecordingError, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import DECISIONS, WINDOWS
from tamiyo.streams.admin.brokers import free_ports
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.process.children import Children
from tamiyo.streams.recording.recording import Recording
from tamiyo.streams.replay.cleanup import groups_under
from tamiyo.streams.replay.drain import LastStage
from tamiyo.streams.replay.flow import ENVIRONMENT, Flow
from tamiyo.streams.replay.ordering import IntakeOrder
from tamiyo.streams.replay.publishing import LOOK_S, Pace, Republisher
from tamiyo.streams.settings import StoreSettings, WindowSettings
from tamiyo.streams.stages.registry import STAGES

READY_TIMEOUT_S = 120.0
PATIENCE_S = 300.0  # without a single record from the last stage, with workers of our own


class Interrupted(Exception):
    """The replay was told to stop."""


@dataclass(frozen=True)
class Plan:
    """How to replay."""

    flow: Flow
    names: TopicNames
    speed: float | None = None
    """Times as fast as it was recorded; None: as fast as it goes."""
    workers: int = 1
    """Processes that share the stages; 0: somebody else runs them."""
    policy_version: int | None = None
    """The policy that decides; None: at each graph the one that did."""
    replication: int = 1


@dataclass(frozen=True)
class Replayed:
    """What came of a replay."""

    published: int
    said: Mapping[str, int]
    """Messages on each topic that the stages publish."""
    rejected: Mapping[str, int]
    """Messages on dead-letter and late topics, where there are any."""
    seconds: float
    waits: int
    """Times that telemetry was held back to keep its order."""


class Observer(Protocol):
    """What a replay tells while it goes on."""

    def stage(self, words: str) -> None:
        """Say what begins now."""

    def published(self, count: int) -> None:
        """Say how many messages have been published."""

    def said(self, count: int) -> None:
        """Say how many records the last stage has published."""


class Replayer:
    """Replays one recording under one plan."""

    def __init__(
        self,
        recording: Recording,
        plan: Plan,
        kafka: KafkaSettings,
        live: TopicNames,
        *,
        stopped: Callable[[], bool] = lambda: False,
        observer: Observer,
    ) -> None:
        self._recording = recording
        self._plan = plan
        self._kafka = kafka
        self._live = live
        self._stopped = stopped
        self._observer = observer
        self._topics = Topics(kafka, plan.names, plan.flow.topics)
        self._children: Children | None = None
        self._published = 0
        self._looked = 0.0

    def check(self) -> None:
        """Look whether this can be replayed here, before anything is made.

        Raises:
            ConfigurationError: the prefix is none of its own, or no policy is known.
            RecordingError: the recording lacks what the stages read, is damaged, or of another schema.
            BrokerError: the broker does not answer, is the embedded one, or has something under the prefix already.
        """
        prefix, manifest = self._plan.names.prefix, self._recording.manifest
        if not prefix:
            raise ConfigurationError("a replay needs a topic prefix of its own: --prefix replay1.")
        for taken, whose in ((self._live.prefix, "the installation's"), (manifest.prefix, "the recorded topics'")):
            if prefix == taken:
                raise ConfigurationError(f"--prefix {prefix} is {whose}; a replay needs one of its own")
        self._check_recording()
        if self._topics.embedded():
            raise BrokerError(
                "the embedded broker keeps 5 MiB a partition and 4 partitions a topic: a replay needs a real Kafka"
            )
        present = self._topics.present()
        if present:
            raise BrokerError(
                f"the prefix {prefix} is in use: there is a topic {present[0]}; choose another, or remove them with "
                f"`tamiyo discard {prefix}`"
            )
        groups = set(groups_under(self._kafka, self._plan.names))
        if groups:
            raise BrokerError(f"the prefix {prefix} is in use: there is a consumer group {min(groups)}; choose another")

    def run(self) -> Replayed:
        """Replay, and return when every stage has drained.

        Raises:
            Interrupted: it was told to stop; topics and what is on them stay.
            BrokerError, RecordingError: as `check`, or a delivery failed.
            TamiyoError: a worker ended; the message holds its last words.
        """
        started = time.monotonic()
        flow, names = self._plan.flow, self._plan.names
        self._observer.stage("creating topics")
        self._topics.create(
            partitions=self._recording.manifest.partitions, replication=self._plan.replication, retention_ms=-1
        )
        with ExitStack() as stack:
            producer = Republisher(self._kafka, names)
            for topic in flow.views:  # before any worker looks: no window waits for its topology
                for message in self._recording.messages(topic):
                    producer.send(message)
            producer.flush(self._look)
            stack.enter_context(self._workers())
            last = stack.enter_context(LastStage(self._kafka, names, flow.last.outputs))
            order = None
            if "intake" in flow.stages:
                order = IntakeOrder(self._kafka, names, names.full(STAGES["intake"].group), WindowSettings())
                stack.callback(order.close)
            self._observer.stage("publishing")
            self._publish(producer, order, last)
            for topic in flow.inputs:
                for partition in range(self._recording.manifest.partitions):
                    producer.end(topic, partition)
            producer.flush(self._look)
            self._observer.stage("draining")
            self._drain(last)
        said, rejected = self._counts()
        waits = order.waits if order is not None else 0
        return Replayed(self._published, said, rejected, round(time.monotonic() - started, 3), waits)

    def environment(self) -> dict[str, str]:
        """Return what a worker's environment needs for this replay."""
        recording = self._recording
        environment = {
            **ENVIRONMENT,
            "TAMIYO_KAFKA_BOOTSTRAP_SERVERS": self._kafka.bootstrap_servers,
            "TAMIYO_TOPIC_PREFIX": self._plan.names.prefix,
        }
        if "decisions" in self._plan.flow.stages:
            environment["TAMIYO_DECISION_RECORDED"] = str(recording.folder.resolve())
            environment["TAMIYO_DECISION_CHECKPOINT_URL"] = self._checkpoint_url()
            if self._plan.policy_version is not None:
                environment["TAMIYO_DECISION_RECORDED_VERSION"] = str(self._plan.policy_version)
        return environment

    # Checks

    def _check_recording(self) -> None:
        recording, flow = self._recording, self._plan.flow
        needed = (*flow.inputs, *flow.views)
        selected = recording.manifest.selection.topics
        missing = [topic.name for topic in needed if topic.name not in selected]
        if missing:
            raise RecordingError(
                f"{recording.folder} does not hold {', '.join(missing)}, which the stages read: record them, or choose "
                "another --from or --to"
            )
        if not recording.count(flow.inputs):
            raise RecordingError(
                f"{recording.folder} holds no message of {', '.join(each.name for each in flow.inputs)}"
            )
        self._check_policies()
        recording.verify((*needed, DECISIONS))
        recording.probe(needed)
        self._check_windows()

    def _check_windows(self) -> None:
        """Refuse to cut windows otherwise than it was recorded: nothing would compare."""
        if "windows" not in self._plan.flow.stages:
            return
        settings = WindowSettings()
        for message in self._recording.messages(WINDOWS):
            try:
                window: Any = decode(message.value, WINDOWS.record)
            except SchemaError:
                continue
            width = window.end - window.start
            if (window.clock, width) != (settings.clock, settings.width):
                raise ConfigurationError(
                    f"the recorded windows are {width} wide by {window.clock}, but TAMIYO_WINDOW_WIDTH is "
                    f"{settings.width} and TAMIYO_WINDOW_CLOCK {settings.clock}: set them as the live workers have them"
                )
            return

    def _check_policies(self) -> None:
        if "decisions" not in self._plan.flow.stages:
            return
        version, recorded = self._plan.policy_version, self._recording
        if version is None and not recorded.count([DECISIONS]):
            raise ConfigurationError(
                f"{recorded.folder} holds no decisions, so nothing says which policy is to decide: choose one with "
                "--policy-version"
            )
        if version is not None:
            url = self._checkpoint_url()
            known = CheckpointStore(url).versions()
            if version not in known:
                there = f"versions {known[0]} to {known[-1]}" if known else "none"
                raise ConfigurationError(f"there is no policy {version}: {url} (TAMIYO_STORE_URL) holds {there}")

    def _checkpoint_url(self) -> str:
        """Return where the policies are that decide: those recorded, or else the installation's, which is only read."""
        recorded, version = self._recording, self._plan.policy_version
        elsewhere = version is not None and version not in recorded.manifest.policy_versions
        return StoreSettings().checkpoints if recorded.checkpoints is None or elsewhere else recorded.checkpoints

    # Work

    def _publish(self, producer: Republisher, order: IntakeOrder | None, last: LastStage) -> None:
        pace = Pace(self._plan.speed)
        for time_ms, message in self._recording.timeline(self._plan.flow.inputs):
            pace.wait(time_ms, lambda: self._look(last))
            if order is not None:
                order.before(message, lambda: self._pump(producer, last))
            producer.send(message)
            if order is not None:
                order.after(message)
            self._published += 1
            if self._published % 100 == 0:
                self._look(last)
        self._observer.published(self._published)

    def _pump(self, producer: Republisher, last: LastStage) -> None:
        producer.poll()
        self._look(last)

    def _drain(self, last: LastStage) -> None:
        since, seen = time.monotonic(), -1
        while not last.ended:
            last.read(LOOK_S)
            self._look(last)
            if last.count != seen:
                since, seen = time.monotonic(), last.count
            elif self._plan.workers and time.monotonic() - since > PATIENCE_S:
                raise BrokerError(
                    f"the replay does not end: nothing more came of {self._plan.flow.last.name} for "
                    f"{PATIENCE_S:.0f} s, {last.partitions_left} partitions are open"
                )

    def _look(self, last: LastStage | None = None) -> None:
        """See to everything beside the work at hand, a few times a second."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        if self._stopped():
            raise Interrupted
        if self._children is not None:
            self._children.check(self._children.names())
        self._observer.published(self._published)
        if last is not None:
            last.read(0)
            self._observer.said(last.count)

    @contextmanager
    def _workers(self) -> Iterator[None]:
        """Run the stages in processes of their own, until the block ends."""
        count = self._plan.workers
        if not count:
            self._observer.stage("waiting for workers that somebody else starts")
            yield
            return
        self._observer.stage(f"starting {count} workers" if count > 1 else "starting a worker")
        stages = [argument for name in self._plan.flow.stages for argument in ("--stage", name)]
        with (
            tempfile.TemporaryDirectory(prefix="tamiyo-replay-") as folder,
            Children(Path(folder), self.environment()) as children,
        ):
            self._children = children
            try:
                ports = free_ports(count)
                for number, port in enumerate(ports):
                    children.start(f"worker-{number + 1}", ["worker", *stages, "--http-port", str(port)])
                self._wait_until_ready(ports)
                yield
            finally:
                self._children = None

    def _wait_until_ready(self, ports: Sequence[int]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not all(_ready(port) for port in ports):
            self._look()
            if time.monotonic() > deadline:
                raise BrokerError(f"the workers were not ready within {READY_TIMEOUT_S:.0f} s")
            time.sleep(LOOK_S)

    def _counts(self) -> tuple[dict[str, int], dict[str, int]]:
        flow, names = self._plan.flow, self._plan.names
        partitions = self._recording.manifest.partitions
        consumer = Consumer(self._kafka.librdkafka(**{"group.id": "tamiyo-reader", "log_level": 0}))
        try:

            def count(name: str) -> int:
                places = [TopicPartition(names.full(name), number) for number in range(partitions)]
                return sum(high - low for low, high in map(consumer.get_watermark_offsets, places))

            said = {topic.name: count(topic.name) - partitions for topic in flow.outputs}  # less the marks
            aside = [
                name
                for stage in flow.stages.values()
                for each in stage.inputs
                for name in (each.dead_letters, each.late)
            ]
            rejected = {name: number for name in aside if (number := count(name))}
        finally:
            consumer.close()
        return said, rejected


def _ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=1.0).status_code == 200
    except httpx.TransportError:
        return False
