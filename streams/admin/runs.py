"""Finds the runs that go on, and forgets those that are over.

Topologies, kernels and orders lie on compacted topics, which keep them for ever: every stage reads those of all runs
when it starts. A tombstone under a run's key makes readers and compaction drop them.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tamiyo.schemas.adaptation import ALL_RUNS
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.client.compacted import NewestByKey, copy_of, key_text
from tamiyo.schemas.client.partition_reader import OffsetRange, PartitionReader
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import ConfigurationError, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CONTROL, DECISIONS, KERNELS, OUTCOMES, PERIODIC, TELEMETRY, TOPOLOGY, Topic
from tamiyo.streams.admin.topics import Topics

QUIET_S = 1_800.0
"""A run that has published nothing for this long, and no final frame, was killed; stages drop its state by then too."""
KEPT = (TOPOLOGY, KERNELS, CONTROL)
"""Compacted topics with records of runs."""
FROM_HOST = (*TELEMETRY, TOPOLOGY)
CLOCKS_DIFFER_S = 60.0  # clocks that are set by NTP differ by less
LAST_FRAMES = 3
"""Messages of a run and topic that are kept: one that nobody can read may follow the final frame."""
REPORTED = 100_000
"""Records between two lines of progress."""
SIGNS = (*FROM_HOST, DECISIONS, OUTCOMES)
"""Topics that show when a run was active; the others have records of the same runs from the same times."""


@dataclass(slots=True)
class Activity:
    """What a run has published since some time."""

    newest_ms: int = 0
    """Kafka time of its newest record on any topic read."""
    host_ms: int = 0
    """Kafka time of the newest record that its training process has published."""
    ended: bool = False
    """Whether the last frames that it has published are final ones."""

    def live(self, since_ms: int) -> bool:
        """Return whether the run goes on: its process has published since then, and has not ended the run."""
        return self.host_ms >= since_ms and not self.ended


@dataclass(frozen=True, slots=True)
class KeptRun:
    """A run of which compacted topics have records."""

    key: bytes
    newest_ms: int
    """Kafka time of the newest of them."""
    places: list[tuple[str, int]] = field(default_factory=list)
    """Topic (without prefix) and partition of each."""

    @property
    def run_id(self) -> str:
        """Return the run's id."""
        return key_text(self.key)

    def described(self) -> dict[str, Any]:
        """Return it as JSON values."""
        records = {topic: sum(name == topic for name, _ in self.places) for topic, _ in self.places}
        return {"run_id": self.run_id, "newest_ms": self.newest_ms, "records": records}


def live_runs(kafka: KafkaSettings, names: TopicNames, *, quiet_s: float = QUIET_S) -> list[str]:
    """Return the runs that go on: whose process published within `quiet_s` seconds, and last no final frame.

    Raises:
        BrokerError: the topics cannot be read.
    """
    since_ms = _now_ms() - round(1000 * quiet_s)
    with PartitionReader(kafka, names.full("tamiyo-runs")) as reader:
        found = activity(reader, names, FROM_HOST, since_ms)
    return sorted(key_text(key) for key, each in found.items() if each.live(since_ms))


def activity(
    reader: PartitionReader,
    names: TopicNames,
    topics: Iterable[Topic],
    since_ms: int,
    report: Callable[[str], None] = lambda _: None,
) -> dict[bytes, Activity]:
    """Return by key what each run has published to topics since a Kafka time; topics that do not exist are left out.

    Raises:
        BrokerError: the topics cannot be read.
    """
    found: dict[bytes, Activity] = {}
    frames: dict[bytes, dict[Topic, deque[bytes]]] = {}
    """By run and topic the last frames, in the order of the log: the clock of a host may have been set back."""
    attached: dict[bytes, int] = {}
    """By run the Kafka time of its newest topology."""
    seen: dict[bytes, int] = {}
    """By run the Kafka time of its newest frame."""
    # A host whose clock was ahead when it attached has published a topology that seems to follow its last frame.
    credible_ms = _now_ms() + round(1000 * CLOCKS_DIFFER_S)
    wanted = {names.full(topic.name): topic for topic in topics}
    existing = reader.topics()
    places = [(full, number) for full in wanted for number in existing.get(full, ())]
    starts = reader.offsets_at(places, since_ms)
    ranges = [OffsetRange(*place, start, reader.bounds(*place)[1]) for place, start in starts.items()]
    for count, message in enumerate(reader.read(ranges), 1):
        topic, key, value = wanted[message.topic() or ""], message.key(), message.value()
        time_ms = message.timestamp()[1]
        if count % REPORTED == 0:
            report(f"{count:,} of {sum(each.end - each.start for each in ranges):,} records read")
        if not isinstance(key, bytes) or not isinstance(value, bytes):
            continue  # a tombstone, or the end marker of a replay
        each = found.setdefault(key, Activity())
        each.newest_ms = max(each.newest_ms, time_ms)
        if topic in PERIODIC:
            frames.setdefault(key, {}).setdefault(topic, deque(maxlen=LAST_FRAMES)).append(value)
        if topic in FROM_HOST:
            each.host_ms = max(each.host_ms, time_ms)
        if topic in FROM_HOST and time_ms <= credible_ms:
            times = attached if topic is TOPOLOGY else seen
            times[key] = max(times.get(key, 0), time_ms)
    for key, last in frames.items():
        # After its last frame a run may have attached again, whose first frames are still to come.
        again = key in attached and attached[key] >= seen.get(key, 0)
        found[key].ended = not again and all(_final(values, topic) for topic, values in last.items())
    return found


class FinishedRuns:
    """The runs that compacted topics still keep, though they are over."""

    def __init__(
        self,
        kafka: KafkaSettings,
        names: TopicNames,
        *,
        older_than_s: float,
        run_id: str | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Find them.

        Args:
            kafka: how to reach the broker.
            names: the installation's topic names.
            older_than_s: only runs whose newest record on any topic is older than these seconds.
            run_id: only this run.
            report: called with progress.

        Raises:
            BrokerError: the topics cannot be read.
            ConfigurationError: the broker is the embedded one, or nothing of the run is kept.
        """
        if Topics(kafka, names).embedded():
            raise ConfigurationError("the embedded broker keeps everything in memory and compacts nothing: restart it")
        self.live: list[str] = []
        """Runs that are old enough and go on nevertheless."""
        self.found: list[KeptRun] = []
        """The oldest first."""
        self._kafka = kafka
        self._names = names
        now_ms = _now_ms()
        before_ms = now_ms - round(1000 * older_than_s)
        with PartitionReader(kafka, names.full("tamiyo-runs")) as reader:
            kept = self._kept(reader)
            if run_id is not None and run_id.encode() not in kept:
                raise ConfigurationError(
                    f"no record of run {run_id!r} is kept on {', '.join(names.full(topic.name) for topic in KEPT)}"
                )
            old = [
                each for each in kept.values() if each.newest_ms < before_ms and each.run_id == (run_id or each.run_id)
            ]
            report(f"{len(kept):,} runs are kept, {len(old):,} of them without a new topology, kernel or order")
            if not old:
                return
            quiet_ms = now_ms - round(1000 * QUIET_S)
            seen = activity(reader, names, SIGNS, min(before_ms, quiet_ms), report)
        for each in sorted(old, key=lambda run: (run.newest_ms, run.key)):
            done = seen.get(each.key, Activity())
            if done.live(quiet_ms):
                self.live.append(each.run_id)
            elif done.newest_ms < before_ms:
                self.found.append(each)

    def forget(self, report: Callable[[str], None] = lambda _: None) -> None:
        """Publish a tombstone for each of their records, and wait for the deliveries.

        It may be called again after a failure: what is forgotten already is not found any more.

        Raises:
            BrokerError: a delivery failed.
        """
        producer = AwaitedProducer(self._kafka)
        for number, run in enumerate(self.found, 1):
            for topic, partition in run.places:
                producer.produce(self._names.full(topic), None, run.key, partition=partition)
            if number % 1_000 == 0:
                report(f"{number:,} of {len(self.found):,} runs forgotten")
        producer.flush()

    def _kept(self, reader: PartitionReader) -> dict[bytes, KeptRun]:
        """Return the runs under whose keys the compacted topics have a record."""
        kept: dict[bytes, KeptRun] = {}
        by_topic = {self._names.full(topic.name): NewestByKey[bytes, bool]() for topic in KEPT}
        ranges = [each for full in by_topic for each in reader.ranges(full)]
        for message in reader.read(ranges):
            key = message.key()
            if isinstance(key, bytes) and key != ALL_RUNS.encode():
                by_topic[message.topic() or ""].take(
                    key, copy_of(message, True if message.value() is not None else None)
                )
        for full, found in by_topic.items():
            for key in found:
                copies = [each for each in found.copies(key) if each.value]
                if copies:
                    known = kept.get(key, KeptRun(key, 0))
                    newest_ms = max(known.newest_ms, *(each.timestamp_ms for each in copies))
                    places = [*known.places, *((self._names.bare(full), each.partition) for each in copies)]
                    kept[key] = KeptRun(key, newest_ms, places)
        return kept


def _final(values: deque[bytes], topic: Topic) -> bool:
    """Return whether the last of a run's frames on a topic ends the run; what nobody can read is no frame."""
    for value in reversed(values):
        with suppress(SchemaError):
            return bool(getattr(decode(value, topic.record), "final", False))
    return False


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
