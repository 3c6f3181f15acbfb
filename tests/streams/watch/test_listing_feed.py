"""What a listing reads: everything but frames, and of these a sample."""

import random
import time
from typing import Any

import pytest

from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import DECISIONS, MODEL_PERFORMANCE, TOPOLOGY
from tamiyo.streams.messages import Message
from tamiyo.streams.watch import views
from tamiyo.streams.watch.feeds import ListingFeed
from tamiyo.streams.watch.feeds.listing_feed import NEWEST, SAMPLE, SampledFrames
from tamiyo.streams.watch.history import History
from tests.support.runs import decision
from tests.support.telemetry import model_performance, topology


def frame(number: int) -> Message:
    return Message("topic", 0, number, number, b"run", b"", ())


def offsets(messages: list[Message]) -> list[int]:
    return [each.offset for each in messages]


def test_few_frames_are_all_kept() -> None:
    frames = SampledFrames(random.Random(0))
    for number in range(SAMPLE):
        frames.take(frame(number))
    assert offsets(frames.kept()) == list(range(SAMPLE))


def test_of_many_frames_a_sample_and_the_newest_are_kept_in_order() -> None:
    first, newest = [], []
    for seed in range(200):
        frames = SampledFrames(random.Random(seed))
        for number in range(1_000):
            frames.take(frame(number))
        found = offsets(frames.kept())
        assert found == sorted(set(found))
        assert SAMPLE <= len(found) <= SAMPLE + NEWEST
        first += [each for each in found if each < 500]
        newest += found[-NEWEST:]
    assert newest == [*range(1_000 - NEWEST, 1_000)] * 200
    assert 0.45 < len(first) / (200 * SAMPLE) < 0.55  # half of a sample is of the first half


@pytest.fixture
def published(kafka: KafkaSettings, names: TopicNames) -> dict[str, int]:
    """Two runs: one of 500 frames, of which each fifth has a validation loss, one that has ended."""
    producer = AwaitedProducer(kafka)

    def send(topic: Any, record: Any) -> None:
        producer.produce(names.full(topic.name), encode(record), record.run_id)

    for run_id, steps in (("long", 500), ("ended", 30)):
        send(TOPOLOGY, topology(["a"], run_id=run_id))
        for step in range(steps):
            more = {"validation_loss": 2.0 / (1 + step)} if step % 5 == 0 else {}
            final = run_id == "ended" and step == steps - 1
            send(MODEL_PERFORMANCE, model_performance(step, 1.0 / (1 + step), run_id=run_id, final=final, **more))
        for number in range(3):
            send(DECISIONS, decision(f"{run_id}{number}", run_id=run_id))
    producer.flush()
    return {"long": 500, "ended": 30}


def test_a_listing_is_that_of_everything(kafka: KafkaSettings, names: TopicNames, published: dict[str, int]) -> None:
    history = History()
    with ListingFeed(history, kafka, names, since_ms=round(1000 * time.time()) - 60_000) as feed:
        assert feed.wait_until_read(20)
    document = views.fleet(history)
    rows = {row["run_id"]: row for row in document["runs"]}
    assert {name: (row["step"], row["decisions"]) for name, row in rows.items()} == {"long": (499, 3), "ended": (29, 3)}
    assert rows["long"]["train_loss"] == pytest.approx(1 / 500)
    assert rows["long"]["validation_loss"] == pytest.approx(2 / 496)
    assert (rows["long"]["state"], rows["ended"]["state"]) == ("training", "finished")
    assert document["source"]["records"] == document["source"]["total"] == sum(published.values()) + 2 + 6
    assert document["source"]["reading"] is False
    falling = rows["long"]["sparkline"]
    assert len(falling) > 3
    assert falling == sorted(falling, reverse=True)


def test_an_unreachable_broker_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tamiyo.schemas.client.partition_reader.REQUEST_TIMEOUT_S", 0.2)
    feed = ListingFeed(History(), KafkaSettings(bootstrap_servers="127.0.0.1:1"), TopicNames())
    with feed, pytest.raises(BrokerError):
        feed.wait_until_read(20)
