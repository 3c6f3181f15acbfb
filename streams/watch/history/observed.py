"""One message of a topic, as the history takes it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Observed:
    """One message with its decoded record."""

    time_ms: int
    """Kafka's time: when the installation knew it."""
    topic: str
    """Name in the catalogue, or its `.dlq` or `.late` topic."""
    record: Any = None
    """The record; None for a tombstone, for dead letters, and for topics of which only the number counts."""
    key: str = ""
    partition: int = 0
    reason: str = ""
    """Why a dead letter was rejected."""
    raw: bytes | None = None
    """The message's value: what the history keeps of a decision and of rewards for the view of a decision."""
