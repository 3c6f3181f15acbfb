from collections.abc import Iterator
from contextlib import closing

import pytest

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import EXPERIENCE
from tamiyo.streams.learner.experience_topic import ExperienceTopic
from tests.support.kafka_log import KafkaLog

KEY = b"run-1"  # all on one partition


@pytest.fixture
def topic(kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog) -> Iterator[ExperienceTopic]:
    kafka_log.say_raw(EXPERIENCE, [(KEY, b"%d" % number) for number in range(6)])
    with closing(ExperienceTopic(kafka, names)) as made:
        yield made


def read(topic: ExperienceTopic, count: int) -> list[bytes]:
    found: list[bytes] = []
    for _ in range(100):
        found += [message.value() for message in topic.read(count - len(found))]
        if len(found) >= count:
            break
    return found


def partition(kafka_log: KafkaLog) -> int:
    return kafka_log.hear(EXPERIENCE.name)[0].partition


def test_it_reads_on_from_the_offsets_it_was_given(topic: ExperienceTopic, kafka_log: KafkaLog) -> None:
    number = partition(kafka_log)
    topic.seek({number: 2})
    topic.start()
    assert read(topic, 3) == [b"2", b"3", b"4"]
    assert topic.positions[number] == 5
    assert topic.refresh() == 1  # what is left unread
    assert topic.unread() == (number, 5)


def test_a_message_counts_as_taken_once_it_was(topic: ExperienceTopic, kafka_log: KafkaLog) -> None:
    number = partition(kafka_log)
    topic.seek({})
    topic.start()
    for _ in range(100):
        for message in topic.read(1):
            assert topic.positions[number] == message.offset()  # a crash while it is in hand reads it again
        if topic.positions[number]:
            break
    assert topic.positions[number] == 1


def test_offsets_of_another_topic_are_not_believed(topic: ExperienceTopic, kafka_log: KafkaLog) -> None:
    number = partition(kafka_log)
    topic.seek({number: 7})  # beyond its end: the topic was made anew
    assert topic.positions[number] == 0


def test_the_tail_is_what_lies_before_and_moves_nothing(topic: ExperienceTopic, kafka_log: KafkaLog) -> None:
    number = partition(kafka_log)
    topic.seek({number: 4})
    before = dict(topic.positions)
    assert [message.value() for message in topic.tail(3)] == [b"1", b"2", b"3"]
    assert topic.positions == before
    assert list(topic.tail(0)) == []
