"""Calls of one stage: records decoded, poison kept away from it, computed in a thread where the stage wants that."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from tamiyo.schemas.client.tracing import Traces
from tamiyo.schemas.errors import BrokerError, SchemaError
from tamiyo.streams.process import steady_clock
from tamiyo.streams.runtime import metrics
from tamiyo.streams.runtime.input_buffer import Undecoded
from tamiyo.streams.runtime.poison import PoisonTracker
from tamiyo.streams.stages.base import Incoming, Output, Reject, Stage

Argument = TypeVar("Argument")


class StageCall:
    """Feeds records to a stage and returns its outputs, and a reject for every record it must not be fed."""

    def __init__(
        self,
        stage: Stage,
        partition: int,
        *,
        dead_lettered: Collection[tuple[str, int]] = (),
        poison: PoisonTracker,
        backlog: Callable[[], int] | None,
        traces: Traces | None = None,
    ) -> None:
        """Call `stage`.

        Args:
            stage: already restored.
            partition: of its inputs.
            dead_lettered: (topic, offset) of records that were dead-lettered as poison before a restart.
            poison: failures of records, kept over restarts.
            backlog: returns how many records wait on the log. None in a replay, which is never overloaded, only
                ahead of time: shedding would change the outputs.
            traces: learn the traces of what is fed; None where there are none.
        """
        self.stage = stage
        self._partition = partition
        self._topics = {topic.name: topic for topic in stage.inputs}
        self._dead_lettered = dead_lettered
        self._poison = poison
        self._backlog = backlog
        self._traces = traces
        self._unpublished: deque[Output] = deque()

    def forget(self, output: Output) -> None:
        """Let the stage forget an output that was too large, before its next call."""
        self._unpublished.append(output)

    async def feed(self, batch: Sequence[Undecoded]) -> list[Output | Reject]:
        """Decode and feed a batch; return rejects first, then what the stage returns.

        An error that the stage raises is recorded against the batch's records, unless it is one of the environment.
        """
        outputs: list[Output | Reject] = []
        records: list[Incoming] = []
        for topic, record in batch:
            place = (topic, self._partition, record.offset, record.timestamp or 0)
            if reason := self._poison_reason(topic, record.offset):
                outputs.append(Reject(_undecoded(place, record), reason, poison=True))
                continue
            try:
                decoded = self.stage.decode(self._topics[topic], record.value)
            except SchemaError as error:
                outputs.append(Reject(_undecoded(place, record), f"{type(error).__name__}: {error}"))
            else:
                records.append(Incoming(*place, decoded, record.value, record.key, tuple(record.headers or ())))
        if self._traces is not None:
            for each in records:
                self._traces.received(each.record, each.headers)
        if records:
            outputs += await self._feed(records)
        return outputs

    async def tick(self) -> Sequence[Output | Reject]:
        """Let the stage do what only time can trigger."""
        self._update_backlog()
        return await self._call(self.stage.tick, steady_clock.time_ms())

    async def _feed(self, records: list[Incoming]) -> Sequence[Output | Reject]:
        self._update_backlog()
        started = time.perf_counter()
        try:
            outputs = await self._call(self.stage.feed, records)
        except (BrokerError, OSError, MemoryError):
            raise  # the environment failed, whatever the records contain
        except Exception as error:
            self._poison.record_failure(records, error)
            raise
        metrics.FEED_SECONDS.labels(self.stage.name).inc(time.perf_counter() - started)
        metrics.BATCH_RECORDS.labels(self.stage.name).observe(len(records))
        return outputs

    async def _call(
        self, function: Callable[[Argument], Sequence[Output | Reject]], argument: Argument
    ) -> Sequence[Output | Reject]:
        while self._unpublished:
            self.stage.forget(self._unpublished.popleft())
        return await asyncio.to_thread(function, argument) if self.stage.offload else function(argument)

    def _update_backlog(self) -> None:
        if self._backlog is not None:
            self.stage.backlog = self._backlog()

    def _poison_reason(self, topic: str, offset: int) -> str | None:
        """Return why a record must not be fed; None if it may be."""
        if (topic, offset) in self._dead_lettered:
            return "poison: it was dead-lettered before a restart"
        return self._poison.is_poison(topic, offset)


def _undecoded(place: tuple[str, int, int, int], record: Any) -> Incoming:
    return Incoming(*place, None, record.value, record.key, tuple(record.headers or ()))
