"""Output partitions, read back from their ends."""

import asyncio
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from aiokafka import TopicPartition
from confluent_kafka import Producer
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.headers import ID_HEADER, POSITIONS_HEADER, SOURCE_HEADER
from tamiyo.streams.runtime import output_log
from tamiyo.streams.runtime.encoding import encode_positions
from tamiyo.streams.runtime.output_log import PIECE, LogMessage, OutputLogReader

OUTPUT = TopicPartition("outputs", 0)
SMALL_PIECE = 4


def with_headers(positions: str, source: str = "") -> LogMessage:
    return LogMessage("t", 0, None, {"tamiyo-positions": positions, "tamiyo-source": source})


@pytest.mark.parametrize(
    ("positions", "precedes"),
    [("a=10", True), ("a=11", False), ("a=10,b=3", True), ("a=10,b=4", False), ("a=1,c=1", False), ("", True)],
)
def test_a_message_precedes_the_committed_offsets_if_none_of_its_positions_is_beyond(
    positions: str, precedes: bool
) -> None:
    assert with_headers(positions).precedes({"a": 10, "b": 3}) is precedes


def test_the_source_is_read_from_the_header() -> None:
    assert with_headers("", "topic.with:colon:3:42").source == ("topic.with:colon", 42)
    assert with_headers("", "").source is None
    assert with_headers("", "a:b:c").source is None


@dataclass
class PartitionLog:
    """One output partition in memory: an aiokafka consumer, as far as a reader needs it."""

    messages: dict[int, list[tuple[str, bytes]]] = field(default_factory=dict)
    """Headers by offset; compaction leaves gaps."""
    end: int = 0
    position_: int = 0
    sought: list[int] = field(default_factory=list)

    def append(self, headers: list[tuple[str, bytes]]) -> None:
        self.messages[self.end] = headers
        self.end += 1

    def assign(self, partitions: list[TopicPartition]) -> None:
        assert partitions == [OUTPUT]

    def pause(self, *_: TopicPartition) -> None: ...

    def resume(self, *_: TopicPartition) -> None: ...

    def seek(self, _: TopicPartition, offset: int) -> None:
        self.position_ = offset
        self.sought.append(offset)

    async def beginning_offsets(self, _: object) -> dict[TopicPartition, int]:
        return {OUTPUT: min(self.messages, default=self.end)}

    async def end_offsets(self, _: object) -> dict[TopicPartition, int]:
        return {OUTPUT: self.end}

    async def position(self, _: TopicPartition) -> int:
        return self.position_

    async def getmany(self, *_: TopicPartition, timeout_ms: int) -> Mapping[TopicPartition, list[Any]]:
        offsets = [offset for offset in sorted(self.messages) if offset >= self.position_]
        taken, rest = offsets[:3], offsets[3:]
        self.position_ = rest[0] if rest else self.end  # past what compaction removed
        return {
            OUTPUT: [SimpleNamespace(offset=at, timestamp=at, value=b"", headers=self.messages[at]) for at in taken]
        }


def read_back(log: PartitionLog, committed: Mapping[str, int]) -> list[LogMessage]:
    async def read() -> list[LogMessage]:
        reader = OutputLogReader.__new__(OutputLogReader)
        reader._consumer = log
        return [
            message
            async for piece in reader.read_back({(OUTPUT.topic, OUTPUT.partition): committed})
            for message in piece
        ]

    with mock.patch.object(output_log, "PIECE", SMALL_PIECE):
        return asyncio.run(read())


def publish(log: PartitionLog, position: int) -> None:
    log.append([(POSITIONS_HEADER, b"in=%d" % position)])


def test_pieces_double_and_reading_stops_at_the_first_that_precedes_the_committed_offsets() -> None:
    log = PartitionLog()
    for offset in range(40):
        publish(log, offset + 1)
    assert sorted(each.offset for each in read_back(log, {"in": 32})) == list(range(24, 40))
    assert log.sought == [36, 32, 24]
    log.sought.clear()
    assert len(read_back(log, {"in": 31})) == 32
    assert len(read_back(log, {"in": 40})) == SMALL_PIECE
    assert len(read_back(log, {"in": 39})) == 2 * SMALL_PIECE
    assert len(read_back(log, {"in": 0})) == 40
    assert read_back(PartitionLog(), {"in": 0}) == []


def test_messages_that_no_stage_published_do_not_end_the_reading() -> None:
    log = PartitionLog()
    publish(log, 9)
    for _ in range(20):
        log.append([("tamiyo-redrive", b"receipt")])
    assert 0 in {each.offset for each in read_back(log, {"in": 5})}
    assert 0 in {each.offset for each in read_back(log, {"in": 9})}


class Worker:
    """Reads two inputs from the committed offsets and publishes one output a record, unless it was restored."""

    def __init__(self, log: PartitionLog, committed: Mapping[str, int], rng: random.Random) -> None:
        self.log, self.rng = log, rng
        self.positions = dict(committed)
        self.before_last = dict(committed)
        restored = read_back(log, committed)
        self.known = {each.identity for each in restored}
        self.reached: dict[str, int] = {}
        for each in restored:
            for topic, offset in each.positions.items():
                self.reached[topic] = max(offset, self.reached.get(topic, 0))

    def step(self, *, crash: bool = False) -> list[list[tuple[str, bytes]]]:
        """Read a batch of one input; return the headers of the outputs in order, of a crash only the first few."""
        topic = self.rng.choice(sorted(self.positions))
        first = self.positions[topic]
        self.before_last = dict(self.positions)
        self.positions[topic] = first + self.rng.randint(1, 4)
        header = encode_positions(self.positions, self.reached)
        outputs = [
            [
                (POSITIONS_HEADER, header),
                (SOURCE_HEADER, b"%s:0:%d" % (topic.encode(), offset)),
                (ID_HEADER, b"%s-%d" % (topic.encode(), offset)),
            ]
            for offset in range(first, self.positions[topic])
            if f"{topic}-{offset}" not in self.known
        ]
        return outputs[: self.rng.randint(0, len(outputs))] if crash else outputs


def could_be_published_again(log: PartitionLog, committed: Mapping[str, int]) -> set[str]:
    found = set()
    for headers in log.messages.values():
        message = LogMessage("t", 0, b"", {name: value.decode() for name, value in headers})
        if message.source is not None and message.source[1] >= committed[message.source[0]]:
            assert message.identity is not None
            found.add(message.identity)
    return found


def shuffled(entries: Iterable[Any], rng: random.Random, disorder: int) -> list[Any]:
    """Return the entries in an order in which fewer than `disorder` pass any other."""
    keyed = [(place + rng.random() * disorder, entry) for place, entry in enumerate(entries)]
    return [entry for _, entry in sorted(keyed, key=lambda each: each[0])]


@settings(max_examples=150, deadline=None)
@given(rng=st.randoms(use_true_random=False), overlap=st.booleans())
def test_reading_back_restores_everything_that_a_restart_could_publish_again(rng: random.Random, overlap: bool) -> None:
    """Lives of workers, each from any offset that was committed.

    Either two workers overlap, so that up to a piece of outputs is out of order; or foreign messages lie between the
    outputs, and compaction and retention have removed some. (Both at once would need larger pieces.)
    """
    log = PartitionLog()
    committed = {"a": 0, "b": 0}
    for _ in range(rng.randint(1, 5)):
        worker = Worker(log, committed, rng)
        assert could_be_published_again(log, committed) <= worker.known
        outputs = [output for _ in range(rng.randint(0, 12)) for output in worker.step()]
        outputs += worker.step(crash=True)
        if overlap:
            outputs = shuffled(outputs, rng, SMALL_PIECE)
        for output in outputs:
            log.append(output)
            while not overlap and rng.random() < 0.3:
                log.append([("tamiyo-redrive", b"receipt")])
        # Of the last batch, nothing was acknowledged: some of its outputs may be missing.
        committed = {topic: rng.randint(committed[topic], worker.before_last[topic]) for topic in committed}
        if not overlap:
            for offset in sorted(log.messages):
                if rng.random() < 0.2:
                    del log.messages[offset]
    worker = Worker(log, committed, rng)
    assert could_be_published_again(log, committed) <= worker.known


def test_a_partition_is_read_back_to_a_whole_piece_that_precedes(kafka: KafkaSettings, names: TopicNames) -> None:
    topic = names.full("outputs")
    producer = Producer(kafka.librdkafka())
    # Outputs 0..2999 were published when the input stood at 1..3000, except that one worker had read ahead.
    for offset in range(3000):
        position = 2000 if offset == 1100 else offset + 1
        producer.produce(topic, b"%d" % offset, partition=2, headers={"tamiyo-positions": f"in={position}"})
    producer.produce(topic, b"x", partition=0, headers=[("tamiyo-positions", "in=7"), ("odd", None)])
    assert producer.flush(20) == 0

    async def read(reader: OutputLogReader, wanted: Mapping[int, int]) -> dict[int, list[LogMessage]]:
        found: dict[int, list[LogMessage]] = {number: [] for number in wanted}
        committed = {(topic, number): {"in": offset} for number, offset in wanted.items()}
        async for piece in reader.read_back(committed):
            assert {each.topic for each in piece} == {topic}
            # The only partition with few messages is 0.
            found[0 if piece[0].value == b"x" else 2][:0] = piece
        return found

    async def scene() -> None:
        async with OutputLogReader(kafka, fetch_wait_ms=10) as reader:
            found = await read(reader, {2: 1900, 0: 7, 1: 0})
            values = [int(each.value or b"") for each in found[2]]
            # Pieces of 500, 500, 1000, 1000: the third contains 1100, so it does not precede; the fourth is the first.
            assert values == list(range(3000))
            assert [each.value for each in found[0]] == [b"x"]
            assert found[1] == []
            piece = (await read(reader, {2: 2500}))[2]
            assert [each.offset for each in piece] == list(range(3000 - 2 * PIECE, 3000))
            assert len((await read(reader, {2: 3000}))[2]) == PIECE
            assert await reader.begins([(topic, 2)]) == {(topic, 2): 0}
            assert await reader.ends([(topic, 2)]) == {(topic, 2): 3000}
            assert await reader.first_after(topic, 2, 1234) == 1234
            assert await reader.first_after(topic, 2, 3000) is None

    asyncio.run(scene())
