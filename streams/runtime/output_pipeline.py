"""The commit invariant: an input is acknowledged only after everything that depends on it is delivered.

1. Outputs are published to each topic in the order in which the stage returns them, and their deliveries are awaited.
2. With each call of the stage goes a bound for each input topic: the lowest offset that the stage still needed after it
   (`open_offsets`), never beyond what it was fed, nor beyond an end marker that has not been passed on.
3. A call's bounds are acknowledged once every output of it, and of all calls before it, is delivered.

So what Faust commits never passes a record whose outputs could still be lost. A restart reads the records after it
again, and an output that was already published (`RestoredState.published`) is not published a second time.

What is larger than a message may be is replaced by a smaller dead letter (`oversized.py`): before it is sent where this
process has the limit, and after the broker's refusal where a topic has it.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from tamiyo.schemas.client.tracing import Traces
from tamiyo.schemas.kafka import HEADERS_BYTES
from tamiyo.streams.headers import KeyValueHeaders
from tamiyo.streams.runtime import metrics
from tamiyo.streams.runtime.encoding import encode_positions, key_of, message_of
from tamiyo.streams.runtime.end_of_stream import EndOfStream
from tamiyo.streams.runtime.failures import TOO_LARGE
from tamiyo.streams.runtime.input_buffer import InputBuffer
from tamiyo.streams.runtime.output_publisher import OutputPublisher, size_of
from tamiyo.streams.runtime.oversized import cut, dead_letter_of, reason_of, was_oversized
from tamiyo.streams.runtime.restore import RestoredState
from tamiyo.streams.stages.base import Incoming, Output, Reject

log = structlog.get_logger(__name__)

MAX_IN_FLIGHT = 100  # calls whose outputs are not delivered: enough to hide a round trip, few enough to bound memory

Published = Output | Reject | EndOfStream


@dataclass(frozen=True, slots=True)
class Replaced:
    """Stands for what was too large, where a dead letter was sent in its place."""

    original: Output | Reject


Sent = tuple[Published | Replaced, float | None]
"""What was sent, and when the input that closed it arrived."""


@dataclass(slots=True)
class _Call:
    deliveries: list[tuple[Awaitable[Any], Sequence[Sent]]]
    """What is done once all of these are delivered, in the order of their topics' logs."""
    bounds: dict[str, int]


class OutputPipeline:
    """Publishes what one stage returns, awaits deliveries in order, and acknowledges inputs."""

    def __init__(
        self,
        stage: str,
        inputs: InputBuffer,
        publisher: OutputPublisher,
        restored: RestoredState,
        traces: Traces | None = None,
        forget: Callable[[Output], None] = lambda _: None,
    ) -> None:
        """Publish what `stage` returns; `forget` is called with each output that is too large."""
        self._stage = stage
        self._inputs = inputs
        self._publisher = publisher
        self._traces = traces
        self._forget = forget
        self._published = restored.published
        self._oversized = restored.oversized
        self._reached = restored.reached
        self._in_flight: deque[_Call] = deque()
        self._acknowledged: dict[str, int] = {}
        self._delivered = 0
        self._added = asyncio.Event()
        self._removed = asyncio.Event()

    @property
    def progress(self) -> Hashable:
        """Return something that changes whenever an output is delivered or an input acknowledged."""
        return self._delivered, *self._acknowledged.values()

    @property
    def in_flight(self) -> int:
        """Return how many calls have outputs that are not delivered."""
        return len(self._in_flight)

    async def publish(self, outputs: Iterable[Published], open_offsets: Mapping[str, int]) -> None:
        """Publish what one call of the stage returned; `open_offsets` are the stage's after that call."""
        bounds = self._bounds(open_offsets)
        new = [each for each in outputs if self._is_new(each)]
        if not new and bounds == self._acknowledged:
            return
        if not await self._publisher.may_publish():
            return
        positions = self._positions()
        by_topic: dict[str, tuple[list[KeyValueHeaders], list[Sent]]] = {}
        for each in new:
            source = None if isinstance(each, EndOfStream) else each.source
            received = self._inputs.received(source.topic, source.offset) if source is not None else None
            topic, message = message_of(each, self._stage, positions)
            if self._traces is not None and isinstance(each, Output):
                closed_by = source.headers if source is not None else None
                span = self._traces.published(f"tamiyo.{self._stage}", topic, each.record, closed_by, received)
                message = (*message[:2], [*message[2], *span])
            if isinstance(each, Reject):
                self._record_reject(each, topic)
            stands_for: Published | Replaced = each
            if not self._fits(each, message) and not isinstance(each, EndOfStream):
                stands_for = Replaced(each)
                smaller = self._smaller(each, self._publisher.largest)
                topic, message = next(
                    (one for one in smaller if self._publisher.fits(one[1], HEADERS_BYTES)), smaller[-1]
                )
            messages, sent = by_topic.setdefault(topic, ([], []))
            messages.append(message)
            sent.append((stands_for, received))
        deliveries: list[tuple[Awaitable[Any], Sequence[Sent]]] = []
        for topic, (messages, sent) in by_topic.items():
            begin = 0
            for delivery, count in await self._publisher.send(topic, messages):
                deliveries.append((delivery, sent[begin : begin + count]))
                begin += count
        if not deliveries and not self._in_flight:
            self._acknowledge(bounds)
            return
        self._in_flight.append(_Call(deliveries, bounds))
        self._added.set()
        await self._at_most(MAX_IN_FLIGHT)

    async def deliver(self) -> None:
        """Await deliveries and acknowledge, for as long as the task lives."""
        while True:
            await self._added.wait()
            self._added.clear()
            while self._in_flight:
                call = self._in_flight[0]
                for delivery, sent in call.deliveries:
                    await self._deliver(delivery, sent)
                    self._delivered += len(sent)
                self._acknowledge(call.bounds)
                self._in_flight.popleft()
                self._removed.set()

    async def flush(self) -> None:
        """Return once everything published is delivered and acknowledged."""
        await self._at_most(0)

    async def _at_most(self, in_flight: int) -> None:
        while len(self._in_flight) > in_flight:
            self._removed.clear()
            await self._removed.wait()

    async def _deliver(self, delivery: Awaitable[Any], sent: Sequence[Sent]) -> None:
        try:
            await delivery
        except TOO_LARGE as refusal:
            # A large record is alone in its batch; a batch of small ones meets a limit that nothing fits.
            refused = sent[0][0]
            if len(sent) > 1 or isinstance(refused, EndOfStream):
                raise
            await self._replace(refused.original if isinstance(refused, Replaced) else refused, refusal)
        else:
            metrics.observe_deliveries(self._stage, sent)

    async def _replace(self, refused: Output | Reject, refusal: BaseException) -> None:
        """Publish a smaller dead letter in place of what the broker refused; raise `refusal` if it refuses that too."""
        for topic, message in self._smaller(refused, None):
            if not await self._publisher.may_publish():
                return
            try:
                for delivery, _ in await self._publisher.send(topic, [message]):
                    await delivery
            except TOO_LARGE:
                continue
            return
        raise refusal

    def _smaller(self, each: Output | Reject, limit: int | None) -> list[tuple[str, KeyValueHeaders]]:
        """Return what can take the place of a message that is too large, the largest first.

        Args:
            each: What the message has.
            limit: The bytes that this process may send; None if the broker refused the message.
        """
        positions = self._positions()
        topic, message = message_of(each, self._stage, positions)
        if isinstance(each, Reject):
            return [(topic, cut(message))]
        first_input = next(iter(self._inputs.positions))
        place = Incoming(first_input, self._publisher.partition, 0, 0, None)
        reason = reason_of(each, size_of(message), limit)
        topic, message = dead_letter_of(each, self._stage, reason, place, positions)
        metrics.REJECTED.labels(self._stage, topic.removesuffix(".dlq"), "too_large").inc()
        self._forget(each)
        log.error("output is too large", stage=self._stage, to=topic, partition=place.partition, reason=reason)
        return [(topic, message), (topic, cut(message))]

    def _fits(self, each: Published, message: KeyValueHeaders) -> bool:
        # A dead letter adds headers to a message that may have had the greatest size.
        return self._publisher.fits(message, 0 if isinstance(each, Output) else HEADERS_BYTES)

    def _positions(self) -> bytes:
        # Not this worker's own positions alone: after a restart they begin below those that an earlier one published.
        return encode_positions(self._inputs.positions, self._reached)

    def _bounds(self, open_offsets: Mapping[str, int]) -> dict[str, int]:
        return {
            topic: self._inputs.ends.bound(topic, min(open_offsets.get(topic, position), position))
            for topic, position in self._inputs.positions.items()
        }

    def _acknowledge(self, bounds: dict[str, int]) -> None:
        if self._inputs.acknowledge(bounds):
            self._acknowledged = bounds

    def _is_new(self, each: Published) -> bool:
        if isinstance(each, EndOfStream):
            return True  # a repeated end marker changes nothing
        key = key_of(each)
        if isinstance(each, Output) and was_oversized(each, self._oversized.get(key)):
            self._forget(each)
            return False
        if key in self._published:
            metrics.REPEATED.labels(self._stage, key[0]).inc()
            return False
        return True

    def _record_reject(self, each: Reject, topic: str) -> None:
        kind = "late" if each.late else "poison" if each.poison else "unusable"
        metrics.REJECTED.labels(self._stage, each.source.topic, kind).inc()
        log.warning("record rejected", stage=self._stage, to=topic, partition=each.source.partition,
                    offset=each.source.offset, reason=each.reason)  # fmt: skip
