"""Where a stage goes on after an assignment, and what it had published beyond that point.

The log is the state: a stage begins to read its inputs at the committed offsets, and is restored first from what it had
published (`OutputLogReader.read_back`), so that it rebuilds its state and publishes nothing twice.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import structlog
from faust.types import TP

from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import SchemaError
from tamiyo.schemas.kafka import TopicNames
from tamiyo.streams.headers import OUTPUT_HEADER, POISON_HEADER
from tamiyo.streams.runtime.faust.app import StageApp
from tamiyo.streams.runtime.output_log import LogMessage, OutputLogReader
from tamiyo.streams.stages.base import PriorOutput, Stage

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class RestoredState:
    """Where to go on, and what not to publish again."""

    positions: dict[str, int]
    """Offset of each input topic at which reading begins."""
    published: set[tuple[str, str]] = field(default_factory=set)
    """(topic, identity) of outputs; (topic, "source topic:offset") of rejects."""
    reached: dict[str, int] = field(default_factory=dict)
    """The highest position of each input in the headers read back: an earlier worker may have read further."""
    oversized: dict[tuple[str, str], set[tuple[str, int] | None]] = field(default_factory=dict)
    """By topic and identity of an output that was too large, the inputs that have closed it; None: time has."""
    poison: set[tuple[str, int]] = field(default_factory=set)
    """(topic, offset) of inputs that were dead-lettered because the stage raised on them."""


class Restore:
    """Reads back what one stage needs to go on, partition by partition."""

    def __init__(self, stage: type[Stage], app: StageApp, names: TopicNames) -> None:
        self._app = app
        self._names = names
        self._inputs = [topic.name for topic in stage.inputs]
        self._outputs = {topic.name: topic for topic in stage.outputs}
        self._rejects = [name for topic in stage.inputs for name in (topic.dead_letters, topic.late)]

    async def positions(self, reader: OutputLogReader, partitions: Sequence[int]) -> dict[int, dict[str, int]]:
        """Return where to begin to read each input, by partition number."""
        full = {name: self._names.full(name) for name in self._inputs}
        tps = {TP(name, number) for name in full.values() for number in partitions}
        committed = await self._app.consumer_thread.committed(tps)
        begins = await reader.begins([(tp.topic, tp.partition) for tp in tps])
        # Without a committed offset, or if records after it have expired, reading begins with the log.
        return {
            number: {bare: max(committed[TP(name, number)] or 0, begins[name, number]) for bare, name in full.items()}
            for number in partitions
        }

    async def read(
        self, reader: OutputLogReader, partition: int, positions: dict[str, int]
    ) -> tuple[RestoredState, list[LogMessage]]:
        """Return the state of a partition whose inputs are read from `positions`, and its outputs, log by log."""
        state = RestoredState(positions)
        outputs: list[LogMessage] = []
        topics = [self._names.full(name) for name in (*self._outputs, *self._rejects)]
        async for piece in reader.read_back({(topic, partition): positions for topic in topics}):
            for message in piece:
                name = self._names.bare(message.topic)
                for topic, offset in message.positions.items():
                    state.reached[topic] = max(offset, state.reached.get(topic, 0))
                if name in self._outputs and message.identity is not None:
                    state.published.add((name, message.identity))
                    outputs.append(message)
                elif OUTPUT_HEADER in message.headers:  # an output that was too large
                    key = message.headers[OUTPUT_HEADER], message.identity or ""
                    state.oversized.setdefault(key, set()).add(message.source)
                elif name not in self._outputs and message.source is not None:
                    state.published.add((name, f"{message.source[0]}:{message.source[1]}"))
                    if POISON_HEADER in message.headers:
                        state.poison.add(message.source)
        order = {topic: place for place, topic in enumerate(topics)}
        # Not by their timestamps: the clock of one worker may be behind that of the worker before it.
        outputs.sort(key=lambda each: (order[each.topic], each.offset))
        return state, outputs

    def prior_outputs(self, partition: int, messages: Iterable[LogMessage]) -> Iterator[PriorOutput]:
        """Decode outputs one after another: a stage keeps little of each, and all of them together are large."""
        for message in messages:
            name = self._names.bare(message.topic)
            try:
                record = decode(message.value, self._outputs[name].record)
            except SchemaError as error:
                log.error("prior output cannot be decoded", topic=name, partition=partition,
                          offset=message.offset, error=str(error))  # fmt: skip
                continue
            sources = dict([message.source]) if message.source else {}
            yield PriorOutput(name, message.offset, record, message.identity or "", sources, message.member_ids)
