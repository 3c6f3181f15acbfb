"""The telemetry of a fault run: guests, clocks, and what the ledger has of them."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing

import pytest

from tamiyo.evaluation.common.simulated_runs import EPOCH_MS, STEP_MS
from tamiyo.evaluation.faults import load
from tamiyo.evaluation.faults.collect import Collector
from tamiyo.evaluation.faults.ledger import Ledger, Sent
from tamiyo.evaluation.faults.telemetry import Guest, Telemetry
from tamiyo.schemas.codec import decode, header
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.telemetry import KernelPerformance, LayerHealth
from tamiyo.schemas.topics import KERNEL_PERFORMANCE, LAYER_HEALTH, TELEMETRY
from tamiyo.streams.admin.growth import own_partition
from tamiyo.streams.admin.topics import Topics

PARTITIONS = 4
FRAMES = {topic.name for topic in TELEMETRY}


class Source:
    """Telemetry on the embedded broker, at ten ticks a second."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames, clocks: Mapping[int, int] | None = None) -> None:
        self.ledger = Ledger()
        Topics(kafka, names).touch()
        self.telemetry = Telemetry(kafka, names, self.ledger, seed=1, partitions=PARTITIONS, tick_s=0.1)
        self.telemetry.clocks.update(clocks or {})
        self.telemetry.start()

    def runs(self) -> dict[str, int]:
        """Return the frames of each run that the broker has."""
        return Counter(each.key.decode() for each in self.sent() if each.topic == KERNEL_PERFORMANCE.name)

    def sent(self) -> list[Sent]:
        return [each for each in self.ledger.sent if each.valid]


@pytest.fixture
def source(kafka: KafkaSettings, names: TopicNames) -> Iterator[Source]:
    found = Source(kafka, names)
    yield found
    found.telemetry.finish()


def test_a_burst_is_published_at_once_and_its_run_ends(source: Source) -> None:
    source.telemetry.invite([Guest(2, frames=150, at_once=True), Guest(3, frames=100, at_once=True)])
    source.telemetry.finish()
    (first, second) = source.telemetry.finished[:2]
    assert [own_partition(run_id.encode(), PARTITIONS) for run_id in (first, second)] == [2, 3]
    runs = source.runs()
    assert (runs[first], runs[second]) == (150, 100)
    burst = [each for each in source.sent() if each.key == first.encode() and each.topic in FRAMES]
    assert len(burst) > 450, "a burst has hundreds of records"


def test_no_decision_on_a_large_network_is_waited_for(source: Source) -> None:
    source.telemetry.invite([Guest(0, frames=3, layers=500, decided=False)])
    source.telemetry.finish()
    large = [
        each.key.decode() for each in source.sent()
        if each.topic == KERNEL_PERFORMANCE.name and len(decode(each.value, KernelPerformance).layer_id) == 500
    ]  # fmt: skip
    assert len(large) == 3
    assert len(source.telemetry.finished) >= PARTITIONS + 1
    assert not set(large) & set(source.telemetry.finished)


def test_a_guest_is_not_replaced_when_its_run_ends(source: Source) -> None:
    source.telemetry.invite([Guest(1, frames=2)] * 3)
    source.telemetry.finish()
    assert len(source.telemetry.finished) == len(set(source.telemetry.finished)) == PARTITIONS + 1 + 3


def test_an_old_host_writes_with_the_schemas_of_the_last_release(source: Source) -> None:
    source.telemetry.invite([Guest(1, frames=2, encoding=load.encode_released)])
    source.telemetry.finish()
    (old, *_) = source.telemetry.finished
    current = header(LayerHealth)
    for each in source.sent():
        if each.topic == LAYER_HEALTH.name:
            assert each.value.startswith(current) == (each.key.decode() != old)


def test_event_times_and_timestamps_follow_the_clock_of_a_partitions_host(
    kafka: KafkaSettings, names: TopicNames
) -> None:
    before_ms, jump_ms = round(1000 * time.time()), -3_600_000
    source = Source(kafka, names, {1: jump_ms})
    source.telemetry.invite([Guest(1, frames=2), Guest(2, frames=2)])
    source.telemetry.finish()
    with closing(Collector(kafka, names)) as collector:
        found = collector.messages()[KERNEL_PERFORMANCE.name]
    for message in found:
        ahead = jump_ms if message.partition == 1 else 0
        frame = decode(message.value, KernelPerformance)
        assert frame.time_ms == EPOCH_MS + STEP_MS * frame.step + ahead
        assert abs(message.timestamp_ms - ahead - before_ms) < 600_000
    assert {message.partition for message in found} == set(range(PARTITIONS))


def test_new_runs_are_on_the_partitions_that_were_added(kafka: KafkaSettings, names: TopicNames) -> None:
    source = Source(kafka, names)
    source.telemetry.finish()
    before = len(source.telemetry.finished)
    source.telemetry.partitions = 2  # the embedded broker has four and cannot add any
    source.telemetry.start()
    source.telemetry.finish()
    new = source.telemetry.finished[before:]
    assert {own_partition(run_id.encode(), 2) for run_id in new} == {0, 1}
    assert len(set(source.telemetry.finished)) == before + 3
    for each in source.sent():
        count = 2 if each.key.decode() in new else PARTITIONS
        assert each.partition == own_partition(each.key, count)


def test_a_host_that_waits_for_its_guests_does_not_wait_for_ever(kafka: KafkaSettings, names: TopicNames) -> None:
    source = Source(kafka, names)
    source.telemetry.finish()
    source.telemetry.invite([Guest(1, frames=2)])
    assert len(source.telemetry.finished) == PARTITIONS + 1
