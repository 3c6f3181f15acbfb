"""The whole chain of stages in one thread and without Kafka: what one publishes, the readers get at once.

Stages are plain classes, so the flow can be run deterministically, stepped through, and looked into.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tamiyo.host.client.transport import InboundRecord, Make
from tamiyo.host.common.settings import HostSettings
from tamiyo.schemas import topics
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import Topic
from tamiyo.streams.stages.base import Incoming, Reject, Stage

HOST_TOPICS = (topics.DECISIONS, topics.KERNELS, topics.CONTROL)


class Shelf:
    """The newest record under each key of a compacted topic, as the stages see it."""

    def __init__(self) -> None:
        self.records: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        """Return the newest record under `key`, or None."""
        return self.records.get(key)

    def items(self) -> Iterable[tuple[str, Any]]:
        """Return all keys with their newest record."""
        return list(self.records.items())


class Chain:
    """Topics of one partition, the stages that read them, and the host at both ends."""

    def __init__(self) -> None:
        self.log: dict[str, list[Any]] = defaultdict(list)
        self.rejected: list[Reject] = []
        self.views: dict[str, Shelf] = defaultdict(Shelf)
        self.stages: list[Stage] = []
        self.arrivals: deque[InboundRecord] = deque()
        self.published = 0
        self.busy_seconds = 0.0
        self.dropped = 0
        self.connected = True
        self.awaits_decisions = False
        self.store_url: str | None = None
        self._said: set[tuple[str, str]] = set()

    def add(self, make: Callable[[int, Any], Stage], settings: Any) -> Stage:
        """Make a stage for partition 0 (`make(partition, settings, views)`) and connect it."""
        stage = make(0, settings, self.views)  # type: ignore[call-arg]
        self.stages.append(stage)
        return stage

    def send(self, topic: Topic, record: Record, key: str) -> None:
        """Publish a record: over the wire's bytes, so that nothing passes that Kafka would not carry."""
        data = encode(record)
        offset = len(self.log[topic.name])
        self.log[topic.name].append(decode(data, topic.record))
        if topic.cleanup == "compact":
            self.views[topic.name].records[key] = self.log[topic.name][-1]
        if topic in HOST_TOPICS:
            self.arrivals.append(decode(data, topic.record))
        for stage in self.stages:
            if topic in stage.inputs:
                incoming = Incoming(topic.name, 0, offset, 0, decode(data, topic.record), data, key.encode())
                self._take(stage.feed([incoming]))

    def tick(self, now_ms: int = 0) -> None:
        """Let time pass for every stage."""
        for stage in self.stages:
            self._take(stage.tick(now_ms))

    def _take(self, results: Sequence[Any]) -> None:
        for result in results:
            if isinstance(result, Reject):
                self.rejected.append(result)
            elif (result.topic.name, result.identity) not in self._said:
                self._said.add((result.topic.name, result.identity))
                self.send(result.topic, result.record, result.record.run_id)

    # As a host's Transport:

    def open(self, run_id: str, settings: HostSettings, on_kernel: Callable[[Any], None]) -> None:
        """Nothing to connect."""

    def publish(self, topic: Topic, make: Make) -> None:
        """Take a host's record."""
        record: Any = make()
        self.published += 1
        self.send(topic, record, record.run_id)
        self.tick()

    def receive(self) -> Sequence[InboundRecord]:
        """Return what came for the host."""
        arrived = list(self.arrivals)
        self.arrivals.clear()
        return arrived

    def close(self, timeout_s: float) -> None:
        """Nothing to close."""
