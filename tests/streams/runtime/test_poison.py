"""A record that ends its process again and again goes to the dead letters, alone, and the flow goes on."""

import asyncio
import json
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.telemetry import CacheHitRates
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.headers import POISON_HEADER
from tamiyo.streams.process.exit_codes import EXIT_SOFTWARE
from tamiyo.streams.runtime.partition_task import PartitionTask, RestoredState
from tamiyo.streams.runtime.poison import PoisonTracker
from tamiyo.streams.stages.base import Incoming, Output, Reject
from tests.streams.runtime.test_partition_task import FakeKafka, TaskHarness
from tests.support.kafka_log import KafkaLog
from tests.support.pairs import FACTORS, LETTERS, NUMBERS, SUMS, PairSettings, PairStage, number
from tests.support.workers import TOPICS, Process, enough

BUG = ZeroDivisionError("a bug")


def incoming(*offsets: int, topic: str = "t") -> list[Incoming]:
    return [Incoming(topic, 0, offset, 0, None) for offset in offsets]


def test_a_batch_is_suspected_and_one_that_fails_alone_is_condemned(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "group-0.json"
    PoisonTracker(path, attempts=2).record_failure(incoming(4, 5, 6), BUG)
    for failures in (0, 1):
        suspects = PoisonTracker(path, attempts=2)
        assert [suspects.isolate("t", offset) for offset in (3, 4, 5, 6, 7)] == [False, True, True, True, False]
        assert [suspects.is_poison("t", offset) for offset in (4, 5, 6)] == [None] * 3, failures
        suspects.record_failure(incoming(5), BUG)
    suspects = PoisonTracker(path, attempts=2)
    reason = suspects.is_poison("t", 5)
    assert reason == "poison: alone, it ended the process 2 times; last ZeroDivisionError: a bug"
    assert suspects.is_poison("t", 4) is None
    assert suspects.is_poison("other", 5) is None


def test_what_lies_before_the_committed_offset_is_forgotten() -> None:
    suspects = PoisonTracker(attempts=1)
    suspects.record_failure(incoming(4), BUG)
    suspects.record_failure(incoming(9), BUG)
    suspects.forget_below({"t": 5})
    assert not suspects.isolate("t", 4)
    assert suspects.is_poison("t", 9)
    suspects.forget_below({"t": 10})
    assert not suspects


@pytest.mark.parametrize("text", ["", "{", "[]", '{"failures": 3}', '{"failures": {"t:1": "x"}, "reason": ""}'])
def test_a_damaged_file_is_not_heeded(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    suspects = PoisonTracker(path)
    assert not suspects
    suspects.record_failure(incoming(1), BUG)
    assert json.loads(path.read_text())["failures"] == {"t:1": 1}


def test_a_full_disk_does_not_hide_the_bug(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    PoisonTracker(tmp_path / "file" / "group-0.json").record_failure(incoming(1), BUG)


class Recording(PairStage):
    """Keeps the sizes of what it was fed, and raises what it is told to at 999."""

    error: Exception = BUG

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        self.batches = [*getattr(self, "batches", []), [each.offset for each in batch]]
        if any(each.record.hits == 999 for each in batch):
            raise self.error
        return super().feed(batch)


def life(
    suspects: PoisonTracker, error: Exception = BUG, *, poison: set[tuple[str, int]] | None = None
) -> tuple[list[list[int]], FakeKafka, list[int]]:
    """Feed five numbers of which the third is a bug; return the batches, what was sent, and what was acknowledged."""

    async def scene() -> tuple[list[list[int]], FakeKafka, list[int]]:
        kafka = FakeKafka()
        desk = TaskHarness.__new__(TaskHarness)
        desk.kafka, desk.acknowledged = kafka, []
        desk.tenure = PartitionTask("pairs", (NUMBERS, LETTERS), 1, kafka)
        stage = Recording(1, PairSettings(), {FACTORS.name: SimpleNamespace(get=lambda key: None)})  # type: ignore[dict-item]
        stage.error = error
        said = {(NUMBERS.dead_letters, f"{topic}:{offset}") for topic, offset in poison or ()}
        desk.tenure.begin(
            stage, RestoredState({NUMBERS.name: 0, LETTERS.name: 0}, said, poison=poison or set()), suspects
        )
        for offset, value in enumerate((1, 2, 999, 4, 5)):
            await desk.take(offset, number("a" if value != 999 else "b", offset, value))
        await desk.settle()
        desk.tenure.close()
        return stage.batches, kafka, desk.acknowledged

    return asyncio.run(scene())


def test_lives_of_a_stage_with_a_poisoned_record() -> None:
    suspects = PoisonTracker(attempts=2)
    batches, kafka, acknowledged = life(suspects)
    assert (batches, kafka.failed, acknowledged) == ([[0, 1, 2, 3, 4]], [BUG], [])
    for _ in range(2):
        batches, kafka, acknowledged = life(suspects)
        assert (batches, kafka.failed, acknowledged) == ([[0], [1], [2]], [BUG], [0, 1])
    batches, kafka, acknowledged = life(suspects)
    assert (batches, kafka.failed, acknowledged) == ([[0], [1], [3], [4]], [], [0, 1, 2, 3, 4])
    (letter,) = [each for each in kafka.sent if each.topic == f"p.{NUMBERS.dead_letters}"]
    assert letter.headers[POISON_HEADER] == "1"
    assert letter.headers["tamiyo-reason"].startswith("poison: alone, it ended the process 2 times")
    assert letter.headers["tamiyo-source"] == "test.numbers:1:2"


def test_what_the_dead_letters_call_poison_is_not_fed_and_not_said_again() -> None:
    batches, kafka, acknowledged = life(PoisonTracker(), poison={(NUMBERS.name, 2)})
    assert (batches, kafka.failed, acknowledged) == ([[0, 1, 3, 4]], [], [0, 1, 2, 3, 4])
    assert [each.topic for each in kafka.sent] == [f"p.{SUMS.name}"] * 2


@pytest.mark.parametrize("error", [OSError("disk full"), BrokerError("away"), MemoryError()])
def test_what_is_not_the_records_fault_suspects_none(error: Exception) -> None:
    suspects = PoisonTracker()
    _, kafka, _ = life(suspects, error)
    assert kafka.failed == [error]
    assert not suspects


@pytest.mark.flow
@pytest.mark.timeout(240)
def test_a_poisoned_record_is_set_aside_over_restarts(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, start: Callable[..., Process], tmp_path: Path
) -> None:
    Topics(kafka, names, TOPICS).touch()
    # On the same partition, and open to the end: every process reads from here.
    kafka_log.say_raw(NUMBERS, [(b"run", encode(number("open", 0, 50)))])
    kafka_log.say(NUMBERS, [number("run", step, value) for step, value in enumerate((1, 2, 999, 4, 5))])
    ends = []
    for _ in range(3):  # as a batch, and twice alone
        worker = start(kafka, poison_attempts=2)
        ends.append(worker.process.wait(60))
        assert kafka_log.hear(NUMBERS.dead_letters) == []
    assert ends == [EXIT_SOFTWARE] * 3
    worker = start(kafka, poison_attempts=2)
    heard = kafka_log.wait_for(SUMS.name, enough(2))
    assert [each.record(CacheHitRates).hits for each in heard] == [3, 9]
    (letter,) = kafka_log.wait_for(NUMBERS.dead_letters, lambda found: len(found) == 1)
    assert letter.record(CacheHitRates).hits == 999
    assert letter.key == b"run"
    assert "ZeroDivisionError: a bug" in letter.headers["tamiyo-reason"]

    # Another machine, where nothing is suspected, reads it once more.
    worker.wait_until_ready(4)
    assert worker.end(signal.SIGKILL) == -signal.SIGKILL
    shutil.rmtree(tmp_path / "state")
    kafka_log.say(NUMBERS, [number("run", 5, 6), number("run", 6, 7)])
    worker = start(kafka, poison_attempts=2)
    heard = kafka_log.wait_for(SUMS.name, enough(3))
    assert heard[-1].record(CacheHitRates).hits == 13
    worker.wait_until_ready(4)
    assert len(kafka_log.hear(NUMBERS.dead_letters)) == 1
    assert worker.metric("tamiyo_records_repeated_total{") == 3  # two sums, and the dead letter
    assert worker.end(signal.SIGTERM) == 0, worker.log.read_text()
