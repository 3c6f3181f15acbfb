"""The feed of topics: from the beginning, then live, on a real broker; what cannot be read is shown."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from tamiyo.schemas.adaptation import ControlCommand
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import BrokerError, RegistryError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CONTROL, DECISIONS, MODEL_PERFORMANCE, SIGNALS, TOPOLOGY
from tamiyo.streams.admin.brokers import LocalKafka, kafka_home
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.headers import NOTE_HEADER, REASON_HEADER
from tamiyo.streams.watch import views
from tamiyo.streams.watch.feeds import TopicFeed, observing, topic_feed
from tamiyo.streams.watch.history import History
from tamiyo.streams.watch.history.decoding import decoded
from tests.streams.watch import watched
from tests.support.factories import make_topology
from tests.support.kafka_log import KafkaLog


def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_feed, "CHECK_S", 0.2)
    monkeypatch.setattr(topic_feed, "COUNT_S", 0.1)
    monkeypatch.setattr(topic_feed, "REQUEST_S", 0.5)


def frames(*steps: int) -> list[Any]:
    return [watched.performance(step) for step in steps]


def steps(history: History) -> list[int]:
    """Return the steps of run-1's curve."""
    return views.run(history, "run-1")["series"]["step"] if "run-1" in history.runs else []


def test_topics_are_read_whole_and_then_followed(kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog) -> None:
    kafka_log.publish(MODEL_PERFORMANCE, frames(10, 20))
    history = History()
    with TopicFeed(history, kafka, names) as feed:
        assert feed.wait_until_read(20)
        assert steps(history) == [10, 20]
        source = history.source
        assert (source.kind, source.name, source.prefix) == ("topics", kafka.bootstrap_servers, names.prefix)
        assert (source.live, source.reading, source.records, source.problem) == (True, False, 2, None)
        kafka_log.publish(MODEL_PERFORMANCE, frames(30))
        kafka_log.publish(DECISIONS, [watched.decision()])  # a topic that did not exist before
        until(lambda: steps(history) == [10, 20, 30] and history.runs["run-1"].decisions)
        until(lambda: history.topics.topics[MODEL_PERFORMANCE.name].in_log == 3)
        assert history.topics.topics[DECISIONS.name].partitions == 4


def test_without_following_it_stops_at_the_end(kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog) -> None:
    kafka_log.publish(MODEL_PERFORMANCE, [*frames(10), watched.performance(10, run_id="run-2")])
    kafka_log.publish(DECISIONS, [watched.decision()])
    history = History()
    topics = (MODEL_PERFORMANCE, TOPOLOGY)
    with TopicFeed(history, kafka, names, topics=topics, run_id="run-2", follow=False, stages=False) as feed:
        assert feed.wait_until_read(20)
        assert (list(history.runs), history.source.live, history.source.records) == (["run-2"], False, 2)


def test_an_installation_without_topics_is_read_at_once(kafka: KafkaSettings, names: TopicNames) -> None:
    for follow in (True, False):
        history = History()
        with TopicFeed(history, kafka, names, follow=follow) as feed:
            assert feed.wait_until_read(20)
        assert (history.source.records, history.source.problem) == (0, None)


def test_since_bounds_what_is_read_except_of_compacted_topics(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog
) -> None:
    kafka_log.publish(TOPOLOGY, [make_topology(2)])
    kafka_log.publish(MODEL_PERFORMANCE, frames(10))
    time.sleep(0.02)
    since_ms = time.time_ns() // 1_000_000
    kafka_log.publish(MODEL_PERFORMANCE, frames(20))
    history = History()
    with TopicFeed(history, kafka, names, since_ms=since_ms, stages=False) as feed:
        assert feed.wait_until_read(20)
        # The mock broker has no index of times: it answers the beginning, or the end.
        assert 20 in steps(history) or steps(history) == []
        assert history.runs["run-1"].topology is not None


def test_what_cannot_be_decoded_counts_and_stops_nothing(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog
) -> None:
    garbage: list[tuple[bytes, bytes | None]] = [
        (b"run-1", b"garbage"), (b"run-1", b""), (b"\xff\xfe", encode(watched.decision())[:-3]), (b"run-1", None),
    ]  # fmt: skip
    kafka_log.publish_bytes(MODEL_PERFORMANCE, garbage)
    kafka_log.publish(MODEL_PERFORMANCE, frames(10))
    kafka_log.publish_bytes(SIGNALS, [(b"run-1", b"only counted, so never decoded")])
    history = History()
    with TopicFeed(history, kafka, names, stages=False) as feed:
        assert feed.wait_until_read(20)
        assert (history.source.undecodable, history.source.records, steps(history)) == (3, 6, [10])


def test_no_message_is_lost_while_partitions_are_searched(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_feed, "CHECK_S", 0.0)
    monkeypatch.setattr(topic_feed, "BATCH", 1)
    history = History()
    kafka_log.publish(MODEL_PERFORMANCE, frames(*range(100)))
    with TopicFeed(history, kafka, names, stages=False) as feed:
        assert feed.wait_until_read(20)
        kafka_log.publish(MODEL_PERFORMANCE, frames(*range(100, 200)))
        until(lambda: history.source.records == 200)
    assert steps(history) == list(range(200))


def test_orders_end_with_their_tombstone(kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog) -> None:
    kafka_log.publish(CONTROL, [ControlCommand(run_id="*", time_ms=1, paused=True)])
    history = History()
    with TopicFeed(history, kafka, names, stages=False) as feed:
        assert feed.wait_until_read(20)
        assert history.orders.standing("run-1")[0].paused
        kafka_log.publish_bytes(CONTROL, [(b"*", None)])
        until(lambda: not history.orders.standing("run-1")[0].paused)


def test_dead_letters_are_shown_with_their_reason(kafka: KafkaSettings, names: TopicNames) -> None:
    producer = AwaitedProducer(kafka, timeout_s=20)
    name = names.full(DECISIONS.dead_letters)
    producer.produce(name, b"x", b"run-1", headers=[(REASON_HEADER, b"planted \x1b[2J")])
    producer.produce(name, b"x", b"run-1", headers=[(NOTE_HEADER, b"claim")])
    producer.produce(names.full(DECISIONS.late), b"x", b"run-1")
    producer.flush()
    history = History()
    with TopicFeed(history, kafka, names, stages=False) as feed:
        assert feed.wait_until_read(20)
    found = views.installation(history)
    assert sorted((each["topic"], each["reason"], each["run_id"]) for each in found["dead_letters"]) == [
        (DECISIONS.dead_letters, "planted \x1b[2J", "run-1"),
        (DECISIONS.late, "no reason is given", "run-1"),
    ]


def test_the_stages_are_read_while_someone_watches(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog
) -> None:
    kafka_log.publish(MODEL_PERFORMANCE, frames(10, 20))
    history = History()
    with TopicFeed(history, kafka, names) as feed:
        assert feed.wait_until_read(20)
        assert history.topics.stages == []
        history.stages_wanted.note()
        until(lambda: history.topics.stages)
        intake = history.topics.stages[0]
        assert (intake["stage"], intake["lag"], intake["members"], intake["problem"]) == ("intake", 2, None, None)
        assert intake["lag_by_topic"][MODEL_PERFORMANCE.name] == 2


def test_a_missing_broker_is_a_problem_that_is_shown() -> None:
    nowhere, history = KafkaSettings(bootstrap_servers="127.0.0.1:1"), History()
    with TopicFeed(history, nowhere, TopicNames(prefix="")):
        until(lambda: history.source.problem)
        assert "nothing can be read since" in str(history.source.problem)
    with TopicFeed(History(), nowhere, TopicNames(prefix=""), follow=False) as feed, pytest.raises(BrokerError):
        feed.wait_until_read(20)


def test_a_registry_that_is_away_is_waited_for(
    kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka_log.publish(MODEL_PERFORMANCE, frames(10))
    failures = iter([True, True])

    def fail_twice(topic: str, value: bytes | None) -> Any:
        if next(failures, False):
            raise RegistryError("planted", temporary=True)
        return decoded(topic, value)

    monkeypatch.setattr(observing, "decoded", fail_twice)
    history, problems = History(), []
    history.subscribe(lambda: problems.append(history.source.problem))
    with TopicFeed(history, kafka, names, stages=False) as feed:
        assert feed.wait_until_read(20)
        assert steps(history) == [10]
    assert "the schema registry does not respond: planted" in str(problems)
    assert (history.source.problem, history.source.undecodable) == (None, 0)


@pytest.mark.kafka
@pytest.mark.skipif(kafka_home() is None, reason="KAFKA_HOME names no Kafka")
def test_reading_goes_on_when_the_broker_is_back(names: TopicNames, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_feed, "REQUEST_S", 0.5)
    with LocalKafka(str(kafka_home())) as broker:
        kafka, history = KafkaSettings(bootstrap_servers=broker.bootstrap_servers), History()
        Topics(kafka, names, [MODEL_PERFORMANCE]).create(partitions=1)
        log = KafkaLog(kafka, names)
        log.publish(MODEL_PERFORMANCE, frames(10))
        with TopicFeed(history, kafka, names, stages=False) as feed:
            assert feed.wait_until_read(30)
            broker.kill()
            until(lambda: history.source.problem)
            broker.start()
            until(lambda: history.source.problem is None, 60)
            log.publish(MODEL_PERFORMANCE, frames(20))
            until(lambda: steps(history) == [10, 20], 60)
            assert history.source.records == 2
        log.close()
