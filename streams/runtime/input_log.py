"""What the broker holds of the inputs of one partition number, beside what the consumer hands on."""

import contextlib
from collections.abc import Callable, Mapping

from faust.types import TP

from tamiyo.schemas.kafka import TopicNames
from tamiyo.streams.runtime.faust.app import StageApp
from tamiyo.streams.runtime.output_log import OutputLogReader


class InputLog:
    """The inputs of one partition number, as they lie on the broker."""

    def __init__(
        self, app: StageApp, names: TopicNames, partition: int, open_reader: Callable[[], OutputLogReader]
    ) -> None:
        self._app = app
        self._names = names
        self._partition = partition
        self._open_reader = open_reader

    def backlog(self, positions: Mapping[str, int]) -> int:
        """Return how many records the log was last known to contain at and after `positions`; one where unknown."""
        records = 0
        for topic, offset in positions.items():
            # The consumer's thread may be losing the partition now; then the result is not used any more.
            with contextlib.suppress(AssertionError, AttributeError, KeyError):
                highwater = self._app.consumer_thread.highwater(TP(self._names.full(topic), self._partition))
                records += 1 if highwater is None else max(0, highwater - offset)
        return records

    async def first_skipped(self, topic: str, expected: int, found: int) -> int | None:
        """Return the first message that was skipped between `expected` and the offset `found`; None if none was.

        A commit that was under way when the partition changed hands, perhaps from this process to itself, may land
        between our reading of the committed offsets and Faust's, which then starts reading further on: those are done.
        """
        tp = TP(self._names.full(topic), self._partition)
        async with self._open_reader() as reader:
            first = await reader.first_after(tp.topic, self._partition, expected)
        if first is None or first >= found:
            return None
        committed = (await self._app.consumer_thread.committed({tp}))[tp]
        return None if committed is not None and committed >= found else first

    async def seek(self, topic: str, offset: int) -> None:
        """Let the consumer read a topic again from `offset`."""
        await self._app.consumer.seek(TP(self._names.full(topic), self._partition), offset)
