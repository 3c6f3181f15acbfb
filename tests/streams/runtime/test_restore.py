"""What a stage is restored from: positions, earlier outputs and rejects, each topic's in the order of its log."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

from faust.types import TP

from tamiyo.schemas.codec import encode
from tamiyo.schemas.kafka import TopicNames
from tamiyo.schemas.topics import Topic
from tamiyo.streams.runtime.output_log import LogMessage
from tamiyo.streams.runtime.restore import Restore, RestoredState
from tests.support.pairs import LETTERS, NUMBERS, SUMS, PairStage, number

OTHER = Topic("test.other", SUMS.record, "pairs", ("test",))


class TwoOutputs(PairStage):
    outputs = (SUMS, OTHER)


class Reader:
    """An OutputLogReader of given messages."""

    def __init__(self, messages: list[LogMessage], begins: Mapping[tuple[str, int], int] | None = None) -> None:
        self._messages = messages
        self._begins = begins or {}
        self.wanted: Mapping[tuple[str, int], Mapping[str, int]] = {}

    async def begins(self, partitions: list[tuple[str, int]]) -> dict[tuple[str, int], int]:
        return {each: self._begins.get(each, 0) for each in partitions}

    async def read_back(self, wanted: Mapping[tuple[str, int], Mapping[str, int]]) -> AsyncIterator[list[LogMessage]]:
        self.wanted = wanted
        for message in self._messages:
            yield [message]


def restore(committed: Mapping[TP, int] | None = None) -> Restore:
    async def committed_of(partitions: set[TP]) -> dict[TP, int | None]:
        return {each: (committed or {}).get(each) for each in partitions}

    app: Any = SimpleNamespace(consumer_thread=SimpleNamespace(committed=committed_of))
    return Restore(TwoOutputs, app, TopicNames(prefix="p."))


def message(topic: str, offset: int, value: bytes | None = b"", **headers: str) -> LogMessage:
    named = {f"tamiyo-{name}": each for name, each in headers.items()}
    return LogMessage(f"p.{topic}", offset, value, named)


def read(messages: list[LogMessage]) -> tuple[RestoredState, list[LogMessage], Reader]:
    reader: Any = Reader(messages)
    state, outputs = asyncio.run(restore().read(reader, 2, {NUMBERS.name: 5, LETTERS.name: 0}))
    return state, outputs, reader


def test_reading_begins_at_the_committed_offsets_or_where_the_log_begins() -> None:
    committed = {TP("p.test.numbers", 1): 7, TP("p.test.letters", 1): 3, TP("p.test.numbers", 2): 0}
    reader: Any = Reader([], {("p.test.letters", 1): 4, ("p.test.letters", 2): 9})
    assert asyncio.run(restore(committed).positions(reader, [1, 2])) == {
        1: {NUMBERS.name: 7, LETTERS.name: 4},  # letter 3 has expired
        2: {NUMBERS.name: 0, LETTERS.name: 9},
    }


def test_outputs_dead_letters_and_late_records_are_read_back_until_the_positions() -> None:
    _, _, reader = read([])
    topics = [
        SUMS.name,
        OTHER.name,
        *(each for topic in (NUMBERS, LETTERS) for each in (topic.dead_letters, topic.late)),
    ]
    assert reader.wanted == {(f"p.{each}", 2): {NUMBERS.name: 5, LETTERS.name: 0} for each in topics}


def test_what_was_published_is_known_and_nothing_foreign_is() -> None:
    state, outputs, _ = read(
        [
            message(SUMS.name, 0, id="one", source="test.numbers:2:8", positions="test.numbers=9,test.letters=0"),
            message(SUMS.name, 1),  # a foreign client's
            message(OTHER.name, 0, id="one", positions="test.numbers=7,test.letters=4"),
            message(NUMBERS.dead_letters, 0, source="test.numbers:2:5"),
            message(NUMBERS.dead_letters, 1, redrive="receipt"),
            message(NUMBERS.dead_letters, 2, source="test.numbers:2:6", poison="1"),
            message(LETTERS.late, 0, source="test.letters:2:1"),
            message(NUMBERS.dead_letters, 3, source="test.numbers:2:7", output=SUMS.name, id="too-large"),
        ]
    )
    assert state == RestoredState(
        positions={NUMBERS.name: 5, LETTERS.name: 0},
        published={
            (SUMS.name, "one"),
            (OTHER.name, "one"),
            (NUMBERS.dead_letters, "test.numbers:5"),
            (NUMBERS.dead_letters, "test.numbers:6"),
            (LETTERS.late, "test.letters:1"),
        },
        oversized={(SUMS.name, "too-large"): {(NUMBERS.name, 7)}},
        reached={NUMBERS.name: 9, LETTERS.name: 4},
        poison={(NUMBERS.name, 6)},
    )
    assert [(each.topic, each.offset) for each in outputs] == [("p.test.sums", 0), ("p.test.other", 0)]


def test_outputs_are_restored_in_the_order_of_each_log() -> None:
    # As they are read back: piece by piece, the newest piece first.
    _, outputs, _ = read(
        [
            message(SUMS.name, 7, id="c"),
            message(OTHER.name, 1, id="e"),
            message(OTHER.name, 2, id="f"),
            message(SUMS.name, 6, id="b"),
            message(SUMS.name, 5, id="a"),
            message(OTHER.name, 0, id="d"),
        ]
    )
    assert "".join(each.identity or "" for each in outputs) == "abcdef"


def test_prior_outputs_are_decoded_and_undecodable_ones_left_out() -> None:
    record = number("run", 3, 4)
    messages = [
        message(SUMS.name, 0, b"rubbish", id="bad"),
        message(SUMS.name, 1, encode(record), id="good", source="test.numbers:2:8", inside="a" * 16 + "b" * 16),
        message(OTHER.name, 2, encode(record), id="ticked"),
    ]
    first, second = restore().prior_outputs(2, messages)
    assert (first.topic, first.offset, first.record, first.identity) == (SUMS.name, 1, record, "good")
    assert (first.sources, first.member_ids) == ({NUMBERS.name: 8}, ("a" * 16, "b" * 16))
    assert (second.topic, second.sources, second.member_ids) == (OTHER.name, {}, ())
