"""Topics with records on their partitions, and what operators' commands make of them."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from tamiyo.schemas.adaptation import CompiledKernel, ControlCommand, KernelStatus
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.codec import encode
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CATALOGUE, CONTROL, KERNELS, TOPOLOGY, Topic
from tamiyo.streams.admin import growth
from tamiyo.streams.admin.growth import Growth, own_partition
from tamiyo.streams.admin.runs import FinishedRuns
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.runtime.views import Views
from tests.support.kafka_log import KafkaLog, LoggedMessage
from tests.support.telemetry import topology

DAY_S = 86_400.0
QUIET_S = 60.0
FEW, MORE = 3, 4  # partitions before and after: keys move to the new partition, and between the old ones


@dataclass(frozen=True)
class Creation:
    """How an installation's topics are made. The embedded broker has four partitions of each, whatever is wanted."""

    topics: tuple[Topic, ...] = CATALOGUE
    partitions: int = FEW
    retention_ms: int | None = None


class Installation:
    """Topics with records on the partitions that their keys had when the topics were made."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames, log: KafkaLog, creation: Creation) -> None:
        self.kafka = kafka
        self.names = names
        self.log = log
        self.producer = AwaitedProducer(kafka)
        self.topics = Topics(kafka, names, creation.topics)
        self.partitions = self.topics.states()[0].partitions
        self._made_with = creation.partitions

    def send(
        self,
        topic: Topic,
        key: str,
        record: Any,
        *,
        days_ago: float = 0.0,
        partitions: int | None = None,
        partition: int | None = None,
        **more: Any,
    ) -> None:
        """Publish a record, bytes, or None; on the key's partition of `partitions` unless `partition` names another."""
        value = record if record is None or isinstance(record, bytes) else encode(record)
        if partition is None:
            partition = own_partition(key.encode(), partitions or self._made_with)
        given = {"timestamp_ms": int(1000 * (time.time() - days_ago * DAY_S)), **more}
        self.producer.produce(self.names.full(topic.name), value, key, partition=partition, **given)
        self.producer.flush()

    def attach(self, run_id: str, *, days_ago: float) -> None:
        """Publish what compacted topics keep of a run."""
        self.send(TOPOLOGY, run_id, topology(["a"], run_id=run_id), days_ago=days_ago)
        kernel = CompiledKernel(
            run_id=run_id, kernel_id="k", decision_id="d", layer_id="0", blueprint="b", status=KernelStatus.COMPILED
        )
        self.send(KERNELS, run_id, kernel, days_ago=days_ago)
        self.send(CONTROL, run_id, ControlCommand(run_id=run_id, time_ms=1, paused=True), days_ago=days_ago)

    def last(self, topic: Topic) -> dict[tuple[str, int], LoggedMessage]:
        """The last message under each key and partition."""
        return {((each.key or b"").decode(), each.partition): each for each in self.log.read(topic.name)}

    def places(self, topic: Topic) -> dict[str, set[int]]:
        """The partitions on which each key has a record."""
        found: dict[str, set[int]] = {}
        for (key, partition), message in self.last(topic).items():
            if message.value is not None:
                found.setdefault(key, set()).add(partition)
        return found

    def grow(self, partitions: int) -> Growth:
        growing = Growth(self.kafka, self.names, partitions)
        growing.check(quiet_s=QUIET_S)
        growing.run()
        return growing

    def settled(self, partitions: int) -> None:
        """Assert that every key has one record, on its own partition, and the check finds nothing."""
        for topic in (TOPOLOGY, CONTROL, KERNELS):
            for key, places in self.places(topic).items():
                assert places == {own_partition(key.encode(), partitions)}, (topic.name, key)
        assert {each.partitions for each in self.topics.states()} == {partitions}
        assert growth.findings(self.kafka, self.names) == []

    def finished(self, days: float, run_id: str | None = None) -> FinishedRuns:
        return FinishedRuns(self.kafka, self.names, older_than_s=days * DAY_S, run_id=run_id)

    def views(self) -> dict[str, set[str]]:
        """The keys that stages hold of each topic after they have started."""

        async def read() -> dict[str, set[str]]:
            views = Views((TOPOLOGY, KERNELS, CONTROL), self.kafka, self.names, fetch_wait_ms=10)
            await views.start()
            await views.wait(20)
            found = {name: {key for key, _ in view.items()} for name, view in views.by_name.items()}
            await views.stop()
            return found

        return asyncio.run(read())
