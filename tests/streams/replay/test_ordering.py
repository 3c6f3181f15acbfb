"""When a replay may publish telemetry, with intake's commits under the test's control."""

from collections.abc import Iterable

import pytest

from tamiyo.schemas.client.partition_reader import Place
from tamiyo.schemas.codec import encode
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import ERROR_RECOVERY, KERNEL_PERFORMANCE, OUTCOMES
from tamiyo.streams.messages import Message
from tamiyo.streams.replay import ordering as replay_order
from tamiyo.streams.replay.ordering import IntakeOrder
from tamiyo.streams.settings import WindowSettings
from tests.support.recordings import message
from tests.support.telemetry import error_recovery, kernel_performance


class Intake:
    """A consumer group whose commits a test makes."""

    def __init__(self) -> None:
        self.committed_offsets: dict[str, int] = {}
        self.requests = 0

    def committed(self, places: Iterable[Place]) -> dict[Place, int]:
        self.requests += 1
        return {place: self.committed_offsets[place[0]] for place in places if place[0] in self.committed_offsets}


@pytest.fixture
def intake() -> Intake:
    return Intake()


@pytest.fixture
def order(intake: Intake) -> IntakeOrder:
    order = IntakeOrder(KafkaSettings(), TopicNames(prefix="r."), "r.intake", WindowSettings(width=50))
    order.close()
    order._reader = intake  # type: ignore[assignment]
    return order


def frame(record: Record, topic: str = KERNEL_PERFORMANCE.name) -> Message:
    return message(topic, 0, encode(record), key=b"run")


def publish(order: IntakeOrder, *messages: Message) -> int:
    """Publish messages that must not wait for commits; return how often they waited for known ones."""

    def never() -> None:
        raise AssertionError("waits for a commit")

    before = order.waits
    for each in messages:
        order.before(each, never)
        order.after(each)
    return order.waits - before


def test_a_frame_that_leaves_a_window_waits_for_the_errors_in_it(order: IntakeOrder, intake: Intake) -> None:
    error = frame(error_recovery(40), ERROR_RECOVERY.name)
    # In the same window, of another run, or of a topic that intake does not read: no wait.
    other = message(KERNEL_PERFORMANCE.name, 0, encode(kernel_performance(60, run_id="other")), key=b"other")
    outcome = message(OUTCOMES.name, 0, b"anything", key=b"run")
    assert publish(order, error, frame(kernel_performance(40)), other, outcome) == 0
    turns = 0

    def commit() -> None:
        nonlocal turns
        turns += 1
        intake.committed_offsets[f"r.{KERNEL_PERFORMANCE.name}"] = 2  # of another topic: not enough
        if turns == 3:
            intake.committed_offsets[f"r.{ERROR_RECOVERY.name}"] = 1

    order.before(frame(kernel_performance(50)), commit)
    assert (turns, order.waits) == (3, 1)
    assert publish(order, frame(kernel_performance(50)), frame(kernel_performance(100))) == 0


def test_a_runs_last_frame_waits_too(order: IntakeOrder, intake: Intake) -> None:
    publish(order, frame(error_recovery(40), ERROR_RECOVERY.name))
    intake.committed_offsets[f"r.{ERROR_RECOVERY.name}"] = 1
    assert publish(order, frame(kernel_performance(45, final=True))) == 1


def test_the_wait_can_be_ended(order: IntakeOrder) -> None:
    publish(order, frame(error_recovery(40), ERROR_RECOVERY.name))

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        order.before(frame(kernel_performance(50)), stop)


def test_publishing_waits_before_the_windows_stage_is_full(
    order: IntakeOrder, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = frame(kernel_performance(0))
    assert one.value is not None
    monkeypatch.setattr(replay_order, "MAX_AHEAD_BYTES", 10 * len(one.value))
    publish(order, *[one] * 11)
    assert intake.requests == 0
    turns = 0

    def commit() -> None:
        nonlocal turns
        turns += 1
        intake.committed_offsets[f"r.{KERNEL_PERFORMANCE.name}"] = 2 * turns

    order.before(one, commit)
    assert turns == 3  # down to half of it


def test_a_message_that_is_not_a_frame_does_not_wait(order: IntakeOrder) -> None:
    bad = message(ERROR_RECOVERY.name, 0, b"garbage", key=b"run")
    assert publish(order, bad, frame(kernel_performance(50)), message(KERNEL_PERFORMANCE.name, 0, b"garbage")) == 0
