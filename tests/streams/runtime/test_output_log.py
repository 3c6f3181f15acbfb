"""The end of an output partition, read back."""

import asyncio

import pytest
from confluent_kafka import Producer

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.runtime.output_log import PIECE, OutputLogReader, Told


def told(positions: str, source: str = "") -> Told:
    return Told(0, 0, None, {"tamiyo-positions": positions, "tamiyo-source": source})


@pytest.mark.parametrize(
    ("positions", "below"),
    [("a=10", True), ("a=11", False), ("a=10,b=3", True), ("a=10,b=4", False), ("a=1,c=1", False), ("", True)],
)
def test_what_was_said_below_the_committed_offsets(positions: str, below: bool) -> None:
    assert told(positions).below({"a": 10, "b": 3}) is below


def test_the_source_is_read_from_the_header() -> None:
    assert told("", "topic.with:colon:3:42").source == ("topic.with:colon", 42)
    assert told("", "").source is None
    assert told("", "a:b:c").source is None


def test_the_tail_reaches_back_to_a_whole_piece_below(kafka: KafkaSettings, names: TopicNames) -> None:
    topic = names.full("outputs")
    producer = Producer(kafka.librdkafka())
    # Outputs 0..2999 were said when the input stood at 1..3000, but one late worker spoke out of turn.
    for offset in range(3000):
        position = 2000 if offset == 1100 else offset + 1
        producer.produce(topic, b"%d" % offset, partition=2, headers={"tamiyo-positions": f"in={position}"})
    producer.produce(topic, b"x", partition=0, headers=[("tamiyo-positions", "in=7"), ("odd", None)])
    assert producer.flush(20) == 0

    async def read() -> None:
        async with OutputLogReader(kafka, fetch_wait_ms=10) as reader:
            wanted = {(topic, 2): {"in": 1900}, (topic, 0): {"in": 7}, (topic, 1): {"in": 0}}
            tails = await reader.read_back(wanted)
            values = [int(each.value or b"") for each in tails[topic, 2]]
            assert values == list(range(values[0], 3000))
            # Pieces of 500, 500, 1000, 1000: the third holds 1100, and so is not below; the fourth begins the log.
            assert values[0] == 0
            assert [each.value for each in tails[topic, 0]] == [b"x"]
            assert tails[topic, 1] == []
            tail = (await reader.read_back({(topic, 2): {"in": 2500}}))[topic, 2]
            assert (tail[0].offset, len(tail)) == (3000 - 2 * PIECE, 2 * PIECE)
            tail = (await reader.read_back({(topic, 2): {"in": 3000}}))[topic, 2]
            assert len(tail) == PIECE
            assert await reader.begins([(topic, 2)]) == {(topic, 2): 0}
            assert await reader.ends([(topic, 2)]) == {(topic, 2): 3000}
            assert await reader.first_after(topic, 2, 1234) == 1234
            assert await reader.first_after(topic, 2, 3000) is None

    asyncio.run(read())


def test_what_no_stage_said_does_not_end_the_reading(kafka: KafkaSettings, names: TopicNames) -> None:
    topic = names.full("letters")
    producer = Producer(kafka.librdkafka())
    producer.produce(topic, b"letter", partition=1, headers={"tamiyo-positions": "in=9", "tamiyo-source": "in:1:8"})
    for _ in range(2 * PIECE):
        producer.produce(topic, b"{}", partition=1, headers={"tamiyo-redrive": "receipt"})
    assert producer.flush(20) == 0

    async def read() -> list[Told]:
        async with OutputLogReader(kafka, fetch_wait_ms=10) as reader:
            return (await reader.read_back({(topic, 1): {"in": 5}}))[topic, 1]

    assert asyncio.run(read())[0].source == ("in", 8)
