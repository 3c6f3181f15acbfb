"""A message of a topic or a recording."""

from collections.abc import Iterable
from dataclasses import dataclass

from tamiyo.schemas.topics import DECISIONS, KERNELS, SIGNALS
from tamiyo.streams.headers import END_HEADER

MADE_OF_ONE_INPUT = frozenset(topic.name for topic in (SIGNALS, DECISIONS, KERNELS))
"""Topics whose records are made of one input each, which makes the record again when it is read once more.

All other outputs depend on records that a stage has read and acknowledged by the time they are made.
"""

Headers = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a topic, with its original bytes."""

    topic: str
    """Catalogue name, without an installation's prefix."""
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()

    def header(self, name: str) -> str | None:
        """Return the first header of that name as text, or None."""
        found = next((value for key, value in self.headers if key == name), None)
        return None if found is None else found.decode("utf-8", "replace")

    @property
    def place(self) -> str:
        """Return topic:partition:offset."""
        return f"{self.topic}:{self.partition}:{self.offset}"


def is_end(value: bytes | None, headers: Iterable[tuple[str, bytes | None]] | None) -> bool:
    """Return whether a message is the end marker of its partition."""
    return value is None and any(name == END_HEADER for name, _ in headers or ())
