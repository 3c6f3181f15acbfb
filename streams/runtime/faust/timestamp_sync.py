"""Which inputs of a stage to read next, so that none runs far ahead of another in time.

aiokafka hands on what one fetch brought of a partition before it fetches again, and a fetch is measured in bytes. Where
much waits, an input of small records is read hours ahead of one of large records: whatever joins the two holds all that
lies between, or takes a run for silent whose records still wait. So of the inputs with one partition number, those go
first that have come least far, as in Kafka Streams (KIP-353). Nothing is held up by an input of which all is read.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from faust.types import TP

SLACK_MS = 1_000
"""How far an input may be ahead: above what separates the records of one moment, whatever topic they go to."""


class TimestampSynchronization:
    """How far each partition has been read, by the time of its records."""

    def __init__(self) -> None:
        self._reached_ms: dict[TP, int] = {}

    def clear(self) -> None:
        """Forget everything: other partitions are read now, or the same from elsewhere."""
        self._reached_ms = {}

    def note(self, records: Mapping[TP, Sequence[Any]]) -> None:
        """Take note of what was read."""
        # The last, not the newest: a record from the future holds its input back only until the next is read.
        self._reached_ms.update({tp: read[-1].timestamp for tp, read in records.items() if read})

    def behind(self, partitions: Collection[TP], waits: Callable[[TP], bool]) -> set[TP]:
        """Return those to read from next: with each number all that are not ahead of one in which something `waits`."""
        inputs: defaultdict[int, list[tuple[float, TP]]] = defaultdict(list)
        for tp in partitions:
            inputs[tp.partition].append((self._reached_ms.get(tp, float("-inf")), tp))
        chosen: set[TP] = set()
        for together in inputs.values():
            last = min((reached for reached, tp in together if waits(tp)), default=float("inf"))
            chosen.update(tp for reached, tp in together if reached <= last + SLACK_MS)
        return chosen
