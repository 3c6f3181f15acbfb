"""What a stage has said before: the ends of its own output partitions, read back when a partition is assigned.

Every output carries in its headers how far each of the stage's inputs had ever been read when it was said: by this
worker, or by one before it that had come further and was not committed. So along the log they only rise. A stretch in
which every position is at or below the committed offsets has nothing before it, and nothing in it, that reading again
from there could say again; reading backwards in growing pieces ends with the first piece that is such a stretch.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings
from tamiyo.streams.headers import INSIDE_HEADER, POSITIONS_HEADER, SOURCE_HEADER
from tamiyo.streams.runtime.faust.clients import aiokafka_settings, start_reader
from tamiyo.streams.stages.base import SHORT_ID

PIECE = 500  # also how much disorder two workers that overlapped in time may have left
LARGEST_PIECE = 16_000
READ_TIMEOUT_S = 60.0

Positions = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Told:
    """One message of the tail, as it came."""

    offset: int
    timestamp_ms: int
    value: bytes | None
    headers: Mapping[str, str]

    @property
    def source(self) -> tuple[str, int] | None:
        """Return the topic and offset of the input that closed it, if one did."""
        parts = self.headers.get(SOURCE_HEADER, "").rsplit(":", 2)
        return (parts[0], int(parts[2])) if len(parts) == 3 and parts[2].isdigit() else None

    @property
    def member_ids(self) -> tuple[str, ...]:
        """Return the short ids of the inputs that are inside."""
        text = self.headers.get(INSIDE_HEADER, "")
        return tuple(text[start : start + SHORT_ID] for start in range(0, len(text), SHORT_ID))

    @property
    def positions(self) -> dict[str, int]:
        """Return how far each input had been read when this was said."""
        parts = [part.partition("=") for part in self.headers.get(POSITIONS_HEADER, "").split(",")]
        return {topic: int(offset) for topic, _, offset in parts if offset.isdigit()}

    def below(self, committed: Positions) -> bool:
        """Return whether nothing at or after the committed offsets had been read when this was said."""
        return all(offset <= committed.get(topic, 0) for topic, offset in self.positions.items())


@dataclass(slots=True)
class _Reading:
    committed: Positions
    begin: int
    low: int
    high: int
    piece: list[Told] = field(default_factory=list)
    pieces: list[list[Told]] = field(default_factory=list)


class OutputLogReader:
    """Reads the ends of partitions, without a group."""

    def __init__(self, kafka: KafkaSettings, *, fetch_wait_ms: int) -> None:
        self._kafka = kafka
        self._consumer: Any = AIOKafkaConsumer(
            **aiokafka_settings(kafka),
            group_id=None,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            fetch_max_wait_ms=min(fetch_wait_ms, 100),
        )

    async def __aenter__(self) -> "OutputLogReader":
        await start_reader(self._consumer, self._kafka)
        return self

    async def __aexit__(self, *_: object) -> None:
        # A task that aiokafka has just made and cancels before its first turn makes stop() raise CancelledError.
        await asyncio.sleep(0)
        await self._consumer.stop()

    async def read_back(self, wanted: Mapping[tuple[str, int], Positions]) -> dict[tuple[str, int], list[Told]]:
        """Return, for each (topic, partition), its messages from before everything said after `committed` to its end.

        Oldest first. Raises BrokerError when the broker takes longer than a minute.
        """
        partitions = {TopicPartition(*each): committed for each, committed in wanted.items()}
        self._consumer.assign(list(partitions))
        self._consumer.pause(*partitions)
        begins = await self._consumer.beginning_offsets(list(partitions))
        ends = await self._consumer.end_offsets(list(partitions))
        readings = {
            each: _Reading(committed, begins[each], ends[each], ends[each]) for each, committed in partitions.items()
        }
        size, read = PIECE, 0
        open_ = {each for each, reading in readings.items() if reading.high > reading.begin}
        while open_:
            for each in open_:
                reading = readings[each]
                reading.high, reading.low = reading.low, max(reading.begin, reading.low - size)
                reading.piece = []
                self._consumer.seek(each, reading.low)
            try:
                await asyncio.wait_for(self._read(readings, open_), READ_TIMEOUT_S)
            except TimeoutError:
                raise BrokerError(f"the ends of {len(open_)} partitions were not read in {READ_TIMEOUT_S} s") from None
            for each in tuple(open_):
                reading = readings[each]
                reading.pieces.append(reading.piece)
                # What a stage did not say tells nothing: notes of a redrive lie among the dead letters.
                said = [told for told in reading.piece if POSITIONS_HEADER in told.headers]
                if reading.low <= reading.begin or (said and all(told.below(reading.committed) for told in said)):
                    open_.discard(each)
            read += size
            size = min(read, LARGEST_PIECE)  # as much again
        return {
            (each.topic, each.partition): [told for piece in reversed(reading.pieces) for told in piece]
            for each, reading in readings.items()
        }

    async def _read(self, readings: Mapping[TopicPartition, _Reading], which: Iterable[TopicPartition]) -> None:
        behind = set(which)
        self._consumer.resume(*behind)
        while behind:
            for partition, messages in (await self._consumer.getmany(*behind, timeout_ms=200)).items():
                reading = readings[partition]
                reading.piece.extend(
                    Told(message.offset, message.timestamp or 0, message.value, _texts(message.headers))
                    for message in messages
                    if message.offset < reading.high
                )
            # Positions pass gaps, so this ends where compaction has removed the last messages too.
            done = {each for each in behind if await self._consumer.position(each) >= readings[each].high}
            if done:
                self._consumer.pause(*done)
                behind -= done

    async def begins(self, partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Return the first offset that each (topic, partition) still has."""
        found = await self._consumer.beginning_offsets([TopicPartition(*each) for each in partitions])
        return {(each.topic, each.partition): offset for each, offset in found.items()}

    async def ends(self, partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Return the offset that the next message of each (topic, partition) will have."""
        found = await self._consumer.end_offsets([TopicPartition(*each) for each in partitions])
        return {(each.topic, each.partition): offset for each, offset in found.items()}

    async def first_after(self, topic: str, partition: int, offset: int) -> int | None:
        """Return the offset of the first message at or after `offset`, None where there is none."""
        where = TopicPartition(topic, partition)
        self._consumer.assign([where])
        end = (await self._consumer.end_offsets([where]))[where]
        begin = (await self._consumer.beginning_offsets([where]))[where]
        self._consumer.seek(where, max(offset, begin))
        while await self._consumer.position(where) < end:
            for messages in (await self._consumer.getmany(where, timeout_ms=200)).values():
                if messages:
                    return int(messages[0].offset)
        return None


def _texts(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    # A foreign client may have put anything there.
    return {name: (value or b"").decode("utf-8", "replace") for name, value in headers}
