"""Where the records come from, and how far they are read."""

from dataclasses import dataclass
from typing import Literal


@dataclass(slots=True)
class Source:
    """The source that a feed reads, as every view shows it."""

    kind: Literal["topics", "recording"] = "topics"
    name: str = ""
    """The broker's address, or the recording's folder."""
    prefix: str = ""
    live: bool = True
    """Whether new records may come after what is read."""
    from_ms: int | None = None
    """Time of the oldest record read."""
    to_ms: int | None = None
    """Time of the newest record read."""
    records: int = 0
    total: int | None = None
    """Records to read until the history is complete; None: not known yet."""
    reading: bool = True
    """Whether the history is still being read."""
    undecodable: int = 0
    problem: str | None = None
    """Why reading does not go on, in words."""
