"""Choose which inputs of a stage to read next, so that none runs far ahead of another in time.

Read against Faust 0.15.3 (`AIOKafkaConsumerThread._fetch_records`) and aiokafka 0.14.0 (`SubscriptionState`,
`TopicPartitionState`).

aiokafka hands on what one fetch brought of a partition before it fetches again, and a fetch is measured in bytes. With
a large backlog, an input of small records is read hours ahead of one of large records: a stage that joins the two has
to hold everything in between, or takes a run for idle although its records are still on the log. So of the inputs with
one partition number, those with the lowest timestamps are read first, as in Kafka Streams (KIP-353). An input that has
been read to its end holds up no other.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP

SLACK_MS = 1_000
"""How far an input may be ahead: more than the spread of the records of one moment over their topics."""


class TimestampSynchronization:
    """How far each partition has been read, by the time of its records."""

    def __init__(self) -> None:
        self._reached_ms: dict[TP, int] = {}

    def clear(self) -> None:
        """Forget everything: other partitions are read now, or the same from elsewhere."""
        self._reached_ms = {}

    def record(self, records: Mapping[TP, Sequence[Any]]) -> None:
        """Record how far `records` reach."""
        # The last, not the newest: a record from the future holds its input back only until the next is read.
        self._reached_ms.update({tp: read[-1].timestamp for tp, read in records.items() if read})

    def behind(self, partitions: Collection[TP], has_backlog: Callable[[TP], bool]) -> set[TP]:
        """Return those to read next: of each number, all that are not ahead of a partition that `has_backlog`."""
        inputs: defaultdict[int, list[tuple[float, TP]]] = defaultdict(list)
        for tp in partitions:
            inputs[tp.partition].append((self._reached_ms.get(tp, float("-inf")), tp))
        chosen: set[TP] = set()
        for together in inputs.values():
            last = min((reached for reached, tp in together if has_backlog(tp)), default=float("inf"))
            chosen.update(tp for reached, tp in together if reached <= last + SLACK_MS)
        return chosen


class TimestampSynchronized(AIOKafkaConsumerThread):  # type: ignore[misc]
    """A consumer thread that reads the inputs that are behind first."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._synchronization = TimestampSynchronization()

    async def on_partitions_assigned(self, assigned: Any, generation: int = 0) -> None:
        """Start over: the positions are others now."""
        self._synchronization.clear()
        await super().on_partitions_assigned(assigned, generation)

    async def _fetch_records(
        self,
        consumer: AIOKafkaConsumer,
        active_partitions: set[TP],
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> Mapping[TP, Sequence[Any]]:
        """Read from the inputs that are behind; if those give nothing for the time of a fetch, from all."""
        behind = self._synchronization.behind(active_partitions, lambda tp: self._has_backlog(consumer, tp))
        records: Mapping[TP, Sequence[Any]] = await super()._fetch_records(consumer, behind, timeout, max_records)
        if not records and len(behind) < len(active_partitions):
            records = await super()._fetch_records(consumer, active_partitions, 0, max_records)
        self._synchronization.record(records)
        return records

    @staticmethod
    def _has_backlog(consumer: AIOKafkaConsumer, tp: TP) -> bool:
        """Return whether the log is known to contain more of a partition than has been read."""
        subscription = consumer._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        state = assignment.state_value(tp) if assignment is not None else None
        if state is None or state.highwater is None or not state.has_valid_position:
            return False
        return bool(state.position < state.highwater)
