"""Replays a recording: publishes it under its own topic prefix and runs the stages on it.

Messages keep their bytes, key, partition, order and Kafka time. Workers run the stages in consumer groups under the
prefix. Every input partition gets an end marker; the replay is complete when the last stage has passed on all of them.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.client.registry import RegistrySettings
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.topics import Topics, dead_letter_names
from tamiyo.streams.process.children import Children
from tamiyo.streams.recording.recording import Recording
from tamiyo.streams.replay import checks
from tamiyo.streams.replay.drain import LastStage
from tamiyo.streams.replay.ordering import IntakeOrder
from tamiyo.streams.replay.plan import Plan
from tamiyo.streams.replay.publishing import POLL_S, Pace, Republisher
from tamiyo.streams.replay.subjects import ReplaySubjects
from tamiyo.streams.replay.workers import replay_workers
from tamiyo.streams.settings import WindowSettings
from tamiyo.streams.stages.registry import STAGES

DRAIN_TIMEOUT_S = 300.0  # without an output of the last stage, with workers of the replay


class Interrupted(Exception):
    """The replay was stopped."""


@dataclass(frozen=True)
class Replayed:
    """The result of a replay."""

    published: int
    """Messages of the recording."""
    computed: Mapping[str, int]
    """Messages on each output topic of the stages."""
    rejected: Mapping[str, int]
    """Messages on dead-letter and late topics that have any."""
    seconds: float
    waits: int
    """Times that telemetry was held back to keep its order."""


class Observer(Protocol):
    """Receives the progress of a replay."""

    def phase(self, description: str) -> None:
        """Called when a phase starts."""

    def published(self, count: int) -> None:
        """Called with the number of messages published so far."""

    def computed(self, count: int) -> None:
        """Called with the number of outputs of the last stage so far."""


class Replayer:
    """Replays one recording under one plan."""

    def __init__(
        self,
        recording: Recording,
        plan: Plan,
        kafka: KafkaSettings,
        live: TopicNames,
        *,
        registry: RegistrySettings | None = None,
        stopped: Callable[[], bool] = lambda: False,
        observer: Observer,
    ) -> None:
        """Prepare a replay.

        Args:
            recording: what to replay.
            plan: how to replay it.
            kafka: the broker for the replay's topics.
            live: topic names of the installation.
            registry: the schema registry that the workers use; None: the environment's.
            stopped: ends the replay once it returns True.
            observer: receives progress.
        """
        self._recording = recording
        self._plan = plan
        self._kafka = kafka
        self._live = live
        self._subjects = ReplaySubjects(plan.names, registry or RegistrySettings())
        self._stopped = stopped
        self._observer = observer
        self._children: Children | None = None
        self._published = 0
        self._checked_at = 0.0

    def check(self) -> None:
        """Check that this can be replayed here, before anything is created; raises as `checks.check` does."""
        checks.check(self._recording, self._plan, self._kafka, self._live, self._subjects)

    def run(self) -> Replayed:
        """Replay, and return when every stage has drained.

        Raises:
            Interrupted: the replay was stopped; its topics and their content stay.
            BrokerError, RecordingError: as `check`, or a delivery failed.
            TamiyoError: a worker exited; the message holds the end of its log.
        """
        started = time.monotonic()
        flow, names = self._plan.flow, self._plan.names
        self._observer.phase("creating topics")
        Topics(self._kafka, names, flow.topics).create(
            partitions=self._recording.manifest.partitions, replication=self._plan.replication, retention_ms=-1
        )
        self._subjects.register()
        with ExitStack() as stack:
            producer = Republisher(self._kafka, names)
            for topic in flow.views:  # before any worker starts: no window waits for its topology
                for message in self._recording.messages(topic):
                    producer.send(message)
            producer.flush(self._check_progress)
            stack.enter_context(self._workers())
            last = stack.enter_context(LastStage(self._kafka, names, flow.last.outputs))
            order = None
            if "intake" in flow.stages:
                order = IntakeOrder(self._kafka, names, names.full(STAGES["intake"].group), WindowSettings())
                stack.callback(order.close)
            self._observer.phase("publishing")
            self._publish(producer, order, last)
            for topic in flow.inputs:
                for partition in range(self._recording.manifest.partitions):
                    producer.end(topic, partition)
            producer.flush(self._check_progress)
            self._observer.phase("draining")
            self._drain(last)
        computed, rejected = self._counts()
        waits = order.waits if order is not None else 0
        return Replayed(self._published, computed, rejected, round(time.monotonic() - started, 3), waits)

    def environment(self) -> dict[str, str]:
        """Return the environment variables of a worker for this replay."""
        return self._plan.environment(self._recording, self._kafka)

    def _publish(self, producer: Republisher, order: IntakeOrder | None, last: LastStage) -> None:
        pace = Pace(self._plan.speed)
        for time_ms, message in self._recording.timeline(self._plan.flow.inputs):
            pace.wait(time_ms, lambda: self._check_progress(last))
            if order is not None:
                order.before(message, lambda: self._poll(producer, last))
            producer.send(message)
            if order is not None:
                order.after(message)
            self._published += 1
            if self._published % 100 == 0:
                self._check_progress(last)
        self._observer.published(self._published)

    def _poll(self, producer: Republisher, last: LastStage) -> None:
        producer.poll()
        self._check_progress(last)

    def _drain(self, last: LastStage) -> None:
        progressed, seen = time.monotonic(), -1
        while not last.ended:
            last.read(POLL_S)
            self._check_progress(last)
            if last.count != seen:
                progressed, seen = time.monotonic(), last.count
            elif self._plan.workers and time.monotonic() - progressed > DRAIN_TIMEOUT_S:
                raise BrokerError(
                    f"the replay does not end: stage {self._plan.flow.last.name} published nothing for "
                    f"{DRAIN_TIMEOUT_S:.0f} s, and {last.partitions_left} partitions have no end marker"
                )

    def _check_progress(self, last: LastStage | None = None) -> None:
        """Check for a stop and for failed workers, and report progress, a few times a second."""
        if time.monotonic() - self._checked_at < POLL_S:
            return
        self._checked_at = time.monotonic()
        if self._stopped():
            raise Interrupted
        if self._children is not None:
            self._children.check(self._children.names())
        self._observer.published(self._published)
        if last is not None:
            last.read(0)
            self._observer.computed(last.count)

    @contextmanager
    def _workers(self) -> Iterator[None]:
        """Run the stages within the block, unless they are started elsewhere."""
        count = self._plan.workers
        if not count:
            self._observer.phase("waiting for workers that are started elsewhere")
            yield
            return
        self._observer.phase(f"starting {count} workers" if count > 1 else "starting a worker")
        with replay_workers(list(self._plan.flow.stages), count, self.environment(), self._check_progress) as children:
            self._children = children
            try:
                yield
            finally:
                self._children = None

    def _counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the number of messages on each output topic, and on the reject topics that have any."""
        flow, names = self._plan.flow, self._plan.names
        partitions = self._recording.manifest.partitions
        rejects = [
            name for stage in flow.stages.values() for topic in stage.inputs for name in dead_letter_names(topic)
        ]
        with PartitionReader(self._kafka) as reader:

            def count(name: str) -> int:
                return sum(each.end - each.start for each in reader.ranges(names.full(name)))

            computed = {topic.name: count(topic.name) - partitions for topic in flow.outputs}  # without end markers
            rejected = {name: number for name in rejects if (number := count(name))}
        return computed, rejected
