"""One message of a topic, as the history takes it."""

from dataclasses import dataclass
from typing import Any, Self

from tamiyo.schemas.codec import encode
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import CATALOGUE
from tamiyo.streams.watch.history.decoding import decoded

TOPIC_OF = {topic.record: topic.name for topic in CATALOGUE}


@dataclass(frozen=True, slots=True)
class Observed:
    """One message, decoded as far as a view needs it."""

    time_ms: int
    """Kafka's time: when the installation knew it."""
    topic: str
    """Name in the catalogue, or its `.dlq` or `.late` topic."""
    record: Any = None
    """What `decoded` returns."""
    key: str = ""
    partition: int = 0
    reason: str = ""
    """Why a dead letter was rejected."""
    raw: bytes | None = None
    """The message's value: the history keeps it of decisions, outcomes, kernels and rewards, for their full view."""

    @classmethod
    def of(cls, record: Record, time_ms: int, *, key: str | None = None, partition: int = 0) -> Self:
        """Return the message that a record is published in."""
        topic, raw = TOPIC_OF[type(record)], encode(record)
        key = str(getattr(record, "run_id", "")) if key is None else key
        return cls(time_ms, topic, decoded(topic, raw), key, partition, raw=raw)
