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
    kafka_log.publish_bytes(EXPERIENCE, [(KEY, b"%d" % number) for number in range(6)])
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
    return kafka_log.read(EXPERIENCE.name)[0].partition


def test_it_reads_from_the_given_offsets(topic: ExperienceTopic, kafka_log: KafkaLog) -> None:
    number = partition(kafka_log)
    topic.seek({number: 2})
    topic.start()
    assert read(topic, 3) == [b"2", b"3", b"4"]
    assert topic.positions[number] == 5
    assert topic.refresh() == 1  # unread messages
    assert topic.unread() == (number, 5)


def test_a_position_moves_once_a_message_is_taken(topic: ExperienceTopic, kafka_log: KafkaLog) -> None:
    number = partition(kafka_log)
    topic.seek({})
    topic.start()
    for _ in range(100):
        for message in topic.read(1):
            assert topic.positions[number] == message.offset()  # after a crash meanwhile it is read again
        if topic.positions[number]:
            break
    assert topic.positions[number] == 1


def test_offsets_beyond_the_end_restart_at_the_beginning(topic: ExperienceTopic, kafka_log: KafkaLog) -> None:
    number = partition(kafka_log)
    topic.seek({number: 7})  # the topic was created again
    assert topic.positions[number] == 0


def test_the_tail_lies_before_the_positions_and_does_not_move_them(topic: ExperienceTopic, kafka_log: KafkaLog) -> None:
    number = partition(kafka_log)
    topic.seek({number: 4})
    before = dict(topic.positions)
    assert [message.value() for message in topic.tail(3)] == [b"1", b"2", b"3"]
    assert topic.positions == before
    assert list(topic.tail(0)) == []
