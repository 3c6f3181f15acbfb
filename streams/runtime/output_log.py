"""A stage's own output partitions, read back from their ends when a partition is assigned."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings
from tamiyo.streams.headers import ID_HEADER, INSIDE_HEADER, POSITIONS_HEADER, SOURCE_HEADER
from tamiyo.streams.runtime.faust.clients import aiokafka_settings, start_reader
from tamiyo.streams.stages.base import SHORT_ID

PIECE = 500  # messages; also how much disorder two workers that overlapped in time may have left
LARGEST_PIECE = 16_000  # messages
READ_TIMEOUT_S = 60.0

Positions = Mapping[str, int]
"""Next offset of each input, by catalogue name."""


@dataclass(frozen=True, slots=True)
class LogMessage:
    """One message of an output partition, undecoded."""

    topic: str
    """Name on the broker, with the installation's prefix."""
    offset: int
    value: bytes | None
    headers: Mapping[str, str]

    @property
    def identity(self) -> str | None:
        """Return the deterministic id of an output; None for a reject or a foreign message."""
        return self.headers.get(ID_HEADER)

    @property
    def source(self) -> tuple[str, int] | None:
        """Return the topic and offset of the input that closed it, if one did."""
        parts = self.headers.get(SOURCE_HEADER, "").rsplit(":", 2)
        return (parts[0], int(parts[2])) if len(parts) == 3 and parts[2].isdigit() else None

    @property
    def member_ids(self) -> tuple[str, ...]:
        """Return the short ids of the inputs it contains."""
        text = self.headers.get(INSIDE_HEADER, "")
        return tuple(text[start : start + SHORT_ID] for start in range(0, len(text), SHORT_ID))

    @property
    def positions(self) -> dict[str, int]:
        """Return the highest position of each input that any worker had reached when this was published."""
        parts = [part.partition("=") for part in self.headers.get(POSITIONS_HEADER, "").split(",")]
        return {topic: int(offset) for topic, _, offset in parts if offset.isdigit()}

    def precedes(self, committed: Positions) -> bool:
        """Return whether nothing at or after the committed offsets had been read when this was published."""
        return all(offset <= committed.get(topic, 0) for topic, offset in self.positions.items())


class OutputLogReader:
    """Reads single partitions, without a consumer group."""

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
        # A task that aiokafka has just created and cancels before its first turn makes stop() raise CancelledError.
        await asyncio.sleep(0)
        await self._consumer.stop()

    async def read_back(self, wanted: Mapping[tuple[str, int], Positions]) -> AsyncIterator[list[LogMessage]]:
        """Yield the ends of output partitions, piece by piece and backwards, as far as a restart may publish again.

        Each piece is in the order of its partition, and as long as everything read of it before. The stopping rule:

        1. The positions in the headers of a partition's messages only rise along the log, but for a disorder of less
           than a piece where two workers overlapped: each worker continues from the highest that it read back.
        2. A message without positions was not published by a stage (the receipt of a redrive, a foreign client's),
           so it shows nothing.
        3. A partition is read back to its beginning, or until a piece has messages with positions and all of them
           precede the committed offsets: then so does everything older, and reading the inputs again from there cannot
           publish it again.

        Args:
            wanted: by (topic, partition), the committed offsets of the stage's inputs.

        Raises:
            BrokerError: the broker takes longer than a minute for a piece.
        """
        partitions = {TopicPartition(*each): committed for each, committed in wanted.items()}
        self._consumer.assign(list(partitions))
        self._consumer.pause(*partitions)
        begins = await self._consumer.beginning_offsets(list(partitions))
        ends = await self._consumer.end_offsets(list(partitions))
        # Where each partition has been read from; those that are read far enough are gone.
        lows = {each: ends[each] for each in partitions if ends[each] > begins[each]}
        size, read = PIECE, 0
        while lows:
            ranges = {each: range(max(begins[each], low - size), low) for each, low in lows.items()}
            try:
                pieces = await asyncio.wait_for(self._read(ranges), READ_TIMEOUT_S)
            except TimeoutError:
                raise BrokerError(
                    f"expected the next {size} messages of {len(lows)} output partitions within {READ_TIMEOUT_S:.0f} s;"
                    " the broker did not deliver them: check its health, the process starts again"
                ) from None
            for each, piece in pieces.items():
                yield piece
                lows[each] = ranges[each].start
                if lows[each] <= begins[each] or _is_old(piece, partitions[each]):
                    del lows[each]
            read += size
            size = min(read, LARGEST_PIECE)

    async def _read(self, ranges: Mapping[TopicPartition, range]) -> dict[TopicPartition, list[LogMessage]]:
        """Read a range of offsets of each partition."""
        pieces: dict[TopicPartition, list[LogMessage]] = {each: [] for each in ranges}
        for each, offsets in ranges.items():
            self._consumer.seek(each, offsets.start)
        behind = set(ranges)
        self._consumer.resume(*behind)
        while behind:
            for partition, messages in (await self._consumer.getmany(*behind, timeout_ms=200)).items():
                pieces[partition].extend(
                    LogMessage(partition.topic, each.offset, each.value, _header_texts(each.headers))
                    for each in messages
                    if each.offset < ranges[partition].stop
                )
            # Positions pass gaps, so this also ends where compaction has removed the last messages.
            done = {each for each in behind if await self._consumer.position(each) >= ranges[each].stop}
            if done:
                self._consumer.pause(*done)
                behind -= done
        return pieces

    async def begins(self, partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Return the first offset that each (topic, partition) still has."""
        found = await self._consumer.beginning_offsets([TopicPartition(*each) for each in partitions])
        return {(each.topic, each.partition): offset for each, offset in found.items()}

    async def ends(self, partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Return the offset that the next message of each (topic, partition) will have."""
        found = await self._consumer.end_offsets([TopicPartition(*each) for each in partitions])
        return {(each.topic, each.partition): offset for each, offset in found.items()}

    async def first_after(self, topic: str, partition: int, offset: int) -> int | None:
        """Return the offset of the first message at or after `offset`, None if there is none."""
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


def _is_old(piece: Sequence[LogMessage], committed: Positions) -> bool:
    """Return whether a piece ends the reading back: rules 2 and 3 of `read_back`."""
    published = [each for each in piece if POSITIONS_HEADER in each.headers]
    return bool(published) and all(each.precedes(committed) for each in published)


def _header_texts(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    # A foreign client may have put anything there.
    return {name: (value or b"").decode("utf-8", "replace") for name, value in headers}
