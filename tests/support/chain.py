"""The whole chain of stages in one thread without Kafka: readers get every record as soon as it is published.

Stages are plain classes, so the flow runs deterministically and can be stepped through and inspected.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.trace import TracerProvider

from tamiyo.host import HostSettings
from tamiyo.host._client.transport import InboundRecord, Make
from tamiyo.schemas import topics
from tamiyo.schemas.client.tracing import Traces
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import Topic
from tamiyo.streams.messages import Headers
from tamiyo.streams.stages.base import Incoming, Reject, Stage
from tests.support.stage_log import FixedView

HOST_TOPICS = (topics.DECISIONS, topics.KERNELS, topics.CONTROL)


class Chain:
    """Topics of one partition, the stages that read them, and the host at both ends."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        """Make an empty chain; with a `provider`, spans are recorded as publishers and partition tasks do."""
        self._provider = provider
        self._host = None if provider is None else Traces(provider)
        self._spans: dict[str, Traces] = {}
        self.log: dict[str, list[Any]] = defaultdict(list)
        self.rejected: list[Reject] = []
        self.views: dict[str, FixedView] = defaultdict(FixedView)
        self.stages: list[Stage] = []
        self.arrivals: deque[InboundRecord] = deque()
        self.published = 0
        self.busy_seconds = 0.0
        self.dropped = 0
        self.destination = "the chain"
        self.connected = True
        self.awaits_decisions = False
        self.store_url: str | None = None
        self._published_ids: set[tuple[str, str]] = set()

    def add(self, make: Callable[[int, Any], Stage], settings: Any) -> Stage:
        """Create a stage for partition 0 with `make(partition, settings, views)` and connect it."""
        stage = make(0, settings, self.views)  # type: ignore[call-arg]
        self.stages.append(stage)
        if self._provider is not None:
            self._spans[stage.name] = Traces(self._provider)
        return stage

    def send(self, topic: Topic, record: Record, key: str, headers: Headers = ()) -> None:
        """Publish a record, encoded and decoded as on Kafka."""
        data = encode(record)
        offset = len(self.log[topic.name])
        self.log[topic.name].append(decode(data, topic.record))
        if topic.cleanup == "compact":
            self.views[topic.name].records[key] = self.log[topic.name][-1]
        if topic in HOST_TOPICS:
            self.arrivals.append(decode(data, topic.record))
            if self._host is not None:
                self._host.received(record, headers)
        for stage in self.stages:
            if topic in stage.inputs:
                incoming = Incoming(topic.name, 0, offset, 0, decode(data, topic.record), data, key.encode(), headers)
                if stage.name in self._spans:
                    self._spans[stage.name].received(incoming.record, headers)
                self._take(stage, stage.feed([incoming]))

    def tick(self, now_ms: int = 0) -> None:
        """Advance the clock of every stage."""
        for stage in self.stages:
            self._take(stage, stage.tick(now_ms))

    def _take(self, stage: Stage, results: Sequence[Any]) -> None:
        for result in results:
            if isinstance(result, Reject):
                self.rejected.append(result)
            elif (result.topic.name, result.identity) not in self._published_ids:
                self._published_ids.add((result.topic.name, result.identity))
                headers: Headers = ()
                if stage.name in self._spans:
                    closed_by = result.source.headers if result.source is not None else None
                    name = f"tamiyo.{stage.name}"
                    headers = tuple(
                        self._spans[stage.name].published(name, result.topic.name, result.record, closed_by)
                    )
                self.send(result.topic, result.record, result.record.run_id, headers)

    # The host's Transport:

    def open(self, run_id: str, settings: HostSettings, on_kernel: Callable[[Any], None]) -> None:
        """Do nothing: there is no connection."""

    def publish(self, topic: Topic, make: Make) -> None:
        """Publish a host's record."""
        record: Any = make()
        self.published += 1
        headers = () if self._host is None else tuple(self._host.from_host(topic.name, record))
        self.send(topic, record, record.run_id, headers)
        self.tick()

    def receive(self) -> Sequence[InboundRecord]:
        """Return the records that have arrived for the host."""
        arrived = list(self.arrivals)
        self.arrivals.clear()
        return arrived

    def close(self, timeout_s: float) -> None:
        """Do nothing: there is no connection."""
