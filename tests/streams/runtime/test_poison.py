"""A record that crashes its stage again and again is dead-lettered, alone, and the flow goes on."""

import asyncio
import json
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.telemetry import CacheHitRates
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.headers import POISON_HEADER
from tamiyo.streams.process.exit_codes import EXIT_SOFTWARE
from tamiyo.streams.runtime.poison import PoisonTracker
from tamiyo.streams.stages.base import Incoming, Output, Reject
from tests.streams.runtime.harness import FakeKafka, TaskHarness, pair_stage, settle, start_of_log
from tests.support.kafka_log import KafkaLog
from tests.support.pairs import NUMBERS, SUMS, PairStage, number
from tests.support.workers import TOPICS, Process, enough

BUG = ZeroDivisionError("a bug")


def incoming(*offsets: int, topic: str = "t") -> list[Incoming]:
    return [Incoming(topic, 0, offset, 0, None) for offset in offsets]


def test_a_failed_batch_is_fed_one_by_one_and_one_that_fails_alone_is_poison(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "group-0.json"
    PoisonTracker(path, attempts=2).record_failure(incoming(4, 5, 6), BUG)
    for failures in (0, 1):
        tracker = PoisonTracker(path, attempts=2)
        assert [tracker.isolate("t", offset) for offset in (3, 4, 5, 6, 7)] == [False, True, True, True, False]
        assert [tracker.is_poison("t", offset) for offset in (4, 5, 6)] == [None] * 3, failures
        tracker.record_failure(incoming(5), BUG)
    tracker = PoisonTracker(path, attempts=2)
    reason = tracker.is_poison("t", 5)
    assert reason == "poison: crashed the stage 2 times when fed alone; last error: ZeroDivisionError: a bug"
    assert tracker.is_poison("t", 4) is None
    assert tracker.is_poison("other", 5) is None


def test_failures_before_the_committed_offset_are_forgotten() -> None:
    tracker = PoisonTracker(attempts=1)
    tracker.record_failure(incoming(4), BUG)
    tracker.record_failure(incoming(9), BUG)
    tracker.forget_below({"t": 5})
    assert not tracker.isolate("t", 4)
    assert tracker.is_poison("t", 9)
    tracker.forget_below({"t": 9})
    assert tracker.is_poison("t", 9)
    tracker.forget_below({"t": 10})
    assert not tracker


@pytest.mark.parametrize("text", ["", "{", "[]", '{"failures": 3}', '{"failures": {"t:1": "x"}, "reason": ""}'])
def test_a_damaged_file_is_ignored(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    tracker = PoisonTracker(path)
    assert not tracker
    tracker.record_failure(incoming(1), BUG)
    assert json.loads(path.read_text())["failures"] == {"t:1": 1}


def test_a_full_disk_does_not_hide_the_bug(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    PoisonTracker(tmp_path / "file" / "group-0.json").record_failure(incoming(1), BUG)


class RecordingStage(PairStage):
    """Keeps the offsets of every batch, and raises `error` at 999."""

    error: Exception = BUG
    batches: list[list[int]]

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        self.batches = [*getattr(self, "batches", []), [each.offset for each in batch]]
        if any(each.record.hits == 999 for each in batch):
            raise self.error
        return super().feed(batch)


def life(
    tracker: PoisonTracker, error: Exception = BUG, *, poison: set[tuple[str, int]] | None = None
) -> tuple[list[list[int]], FakeKafka, list[int]]:
    """Feed five numbers of which the third is a bug; return the batches, the task's Kafka, and the acknowledged."""

    async def scene() -> tuple[list[list[int]], FakeKafka, list[int]]:
        kafka = FakeKafka()
        stage = pair_stage(RecordingStage)
        assert isinstance(stage, RecordingStage)
        stage.error = error
        restored = start_of_log()
        restored.poison = poison or set()
        restored.published = {(NUMBERS.dead_letters, f"{topic}:{offset}") for topic, offset in restored.poison}
        harness = TaskHarness(kafka, stage=stage, restored=restored, poison=tracker)
        for offset, value in enumerate((1, 2, 999, 4, 5)):
            await harness.take(offset, number("a" if value != 999 else "b", offset, value))
        await settle()
        harness.task.close()
        return stage.batches, kafka, harness.acknowledged[NUMBERS.name]

    return asyncio.run(scene())


def test_lives_of_a_stage_with_a_poison_record() -> None:
    tracker = PoisonTracker(attempts=2)
    batches, kafka, acknowledged = life(tracker)
    assert (batches, kafka.failed, acknowledged) == ([[0, 1, 2, 3, 4]], [BUG], [])
    for _ in range(2):
        batches, kafka, acknowledged = life(tracker)
        assert (batches, kafka.failed, acknowledged) == ([[0], [1], [2]], [BUG], [0, 1])
    batches, kafka, acknowledged = life(tracker)
    assert (batches, kafka.failed, acknowledged) == ([[0], [1], [3], [4]], [], [0, 1, 2, 3, 4])
    (dead_letter,) = [each for each in kafka.sent if each.topic == NUMBERS.dead_letters]
    assert dead_letter.headers[POISON_HEADER] == "1"
    assert dead_letter.headers["tamiyo-reason"].startswith("poison: crashed the stage 2 times when fed alone")
    assert dead_letter.headers["tamiyo-source"] == "test.numbers:1:2"


def test_a_record_dead_lettered_as_poison_is_not_fed_and_not_published_again() -> None:
    batches, kafka, acknowledged = life(PoisonTracker(), poison={(NUMBERS.name, 2)})
    assert (batches, kafka.failed, acknowledged) == ([[0, 1, 3, 4]], [], [0, 1, 2, 3, 4])
    assert [each.topic for each in kafka.sent] == [SUMS.name] * 2


@pytest.mark.parametrize("error", [OSError("disk full"), BrokerError("away"), MemoryError()])
def test_an_environment_error_is_not_recorded_against_the_records(error: Exception) -> None:
    tracker = PoisonTracker()
    _, kafka, _ = life(tracker, error)
    assert kafka.failed == [error]
    assert not tracker


@pytest.mark.flow
@pytest.mark.timeout(240)
def test_a_poison_record_is_dead_lettered_over_restarts(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, start: Callable[..., Process], tmp_path: Path
) -> None:
    Topics(kafka, names, TOPICS).touch()
    # On the same partition, and open to the end: every process begins to read here.
    kafka_log.publish_bytes(NUMBERS, [(b"run", encode(number("open", 0, 50)))])
    kafka_log.publish(NUMBERS, [number("run", step, value) for step, value in enumerate((1, 2, 999, 4, 5))])
    ends = []
    for _ in range(3):  # as a batch, and twice alone
        worker = start(kafka, poison_attempts=2)
        ends.append(worker.process.wait(60))
        assert kafka_log.read(NUMBERS.dead_letters) == []
    assert ends == [EXIT_SOFTWARE] * 3
    worker = start(kafka, poison_attempts=2)
    outputs = kafka_log.wait_for(SUMS.name, enough(2))
    assert [each.record(CacheHitRates).hits for each in outputs] == [3, 9]
    (dead_letter,) = kafka_log.wait_for(NUMBERS.dead_letters, lambda found: len(found) == 1)
    assert dead_letter.record(CacheHitRates).hits == 999
    assert dead_letter.key == b"run"
    assert "ZeroDivisionError: a bug" in dead_letter.headers["tamiyo-reason"]

    # Another machine, without failures on its disk, reads it once more.
    worker.wait_until_ready(4)
    assert worker.end(signal.SIGKILL) == -signal.SIGKILL
    shutil.rmtree(tmp_path / "state")
    kafka_log.publish(NUMBERS, [number("run", 5, 6), number("run", 6, 7)])
    worker = start(kafka, poison_attempts=2)
    outputs = kafka_log.wait_for(SUMS.name, enough(3))
    assert outputs[-1].record(CacheHitRates).hits == 13
    worker.wait_until_ready(4)
    assert len(kafka_log.read(NUMBERS.dead_letters)) == 1
    assert worker.metric("tamiyo_records_repeated_total") == 3  # two sums, and the dead letter
    assert worker.end(signal.SIGTERM) == 0, worker.log.read_text()
