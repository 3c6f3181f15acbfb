"""The newest record under each key of a compacted topic, whatever partition it is on.

A key's messages lie on one partition, until partitions are added: then its new messages go to another one, and the last
message on the old one is never replaced there. Reading all partitions and keeping what was read last would bring such a
stale copy back, in whatever order the broker delivers the partitions.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import SchemaError
from tamiyo.schemas.record import Record

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
R = TypeVar("R", bound=Record)

REMOVED_S = 600.0  # by then the last record published before a tombstone has been read from every partition


@dataclass(frozen=True, slots=True)
class Copy(Generic[V]):
    """The last message under a key on one partition."""

    partition: int
    timestamp_ms: int
    """The message's Kafka time."""
    value: V | None
    """None for a tombstone."""
    version: int = 0
    """Of records that have one: it decides between messages of the same millisecond."""

    @property
    def order(self) -> tuple[int, bool, int, int]:
        """Return what is compared between partitions; a record outlives a tombstone of the same millisecond."""
        return self.timestamp_ms, self.value is not None, self.version, self.partition


class NewestByKey(Generic[K, V]):
    """The messages under each key that compaction leaves, one a partition, and the newest of them.

    On one partition the later message counts, as for compaction, whatever its time. Between partitions the newest by
    time counts, then by version. A tombstone counts as any message: it removes what is older, on other partitions too.

    Example:
        >>> orders = NewestByKey[str, str]()
        >>> orders.take("run-1", Copy(5, 2_000, "go on"))  # on its new partition
        True
        >>> orders.take("run-1", Copy(1, 1_000, "pause"))  # on its old one, delivered later
        False
        >>> orders.get("run-1")
        'go on'
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Know no key; `clock` returns seconds."""
        self._clock = clock
        self._copies: dict[K, tuple[Copy[V], ...]] = {}
        """The newest last."""
        self._removed: OrderedDict[K, float] = OrderedDict()
        """Keys of which only tombstones are left, with the time of the last one."""
        self._with_value = 0

    def take(self, key: K, copy: Copy[V]) -> bool:
        """Take the next message of a partition; return whether the newest message under its key is another one now."""
        copies = self._copies.get(key, ())
        others = [each for each in copies if each.partition != copy.partition]
        newest = sorted((*others, copy), key=lambda each: each.order)
        self._copies[key] = tuple(newest)
        self._with_value += (newest[-1].value is not None) - bool(copies and copies[-1].value is not None)
        self._removed.pop(key, None)
        if all(each.value is None for each in newest):
            self._removed[key] = self._clock()
        return not copies or newest[-1] is not copies[-1]

    def get(self, key: K) -> V | None:
        """Return the newest value under `key`, or None."""
        copies = self._copies.get(key)
        return copies[-1].value if copies else None

    def copies(self, key: K) -> tuple[Copy[V], ...]:
        """Return the last message under `key` on each partition, the newest last."""
        return self._copies.get(key, ())

    def items(self) -> Iterator[tuple[K, V]]:
        """Yield the keys that have a value, with their newest one."""
        for key, copies in self._copies.items():
            value = copies[-1].value
            if value is not None:
                yield key, value

    def __iter__(self) -> Iterator[K]:
        """Yield all keys, also of which only tombstones are left."""
        return iter(self._copies)

    def __len__(self) -> int:
        """Return how many keys have a value."""
        return self._with_value

    def forget_removed(self) -> None:
        """Forget keys of which only tombstones are left for `REMOVED_S`; call it once all partitions are read."""
        before = self._clock() - REMOVED_S
        while self._removed and next(iter(self._removed.values())) <= before:
            key, _ = self._removed.popitem(last=False)
            del self._copies[key]


def key_text(key: Any) -> str:
    """Return a message's key as text."""
    return (key or b"").decode("utf-8", "replace")


def newest_records(
    reader: PartitionReader,
    topic: str,
    record: type[R],
    *,
    undecodable: Callable[[int | None, SchemaError], object] = lambda offset, error: None,
) -> dict[str, R]:
    """Return the newest record under each key of a compacted topic now.

    Args:
        reader: reads it.
        topic: its name on the broker.
        record: the type of its values.
        undecodable: called with the offset of a message that cannot be decoded, which is left out, and the reason.

    Raises:
        BrokerError: the topic cannot be read.
    """
    found = NewestByKey[str, R]()
    for message in reader.read(reader.ranges(topic)):
        try:
            value = decode(message.value(), record) if message.value() is not None else None
        except SchemaError as error:
            undecodable(message.offset(), error)
            continue
        found.take(key_text(message.key()), copy_of(message, value))
    return dict(found.items())


def copy_of(message: Any, value: V | None) -> Copy[V]:
    """Return a message of confluent-kafka as a copy with this value, its record or bytes."""
    return Copy(message.partition(), message.timestamp()[1], value, getattr(value, "version", 0))
