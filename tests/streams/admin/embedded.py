"""The embedded broker in the place of a real one, for what commands refuse to do there."""

import pytest

from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.streams.admin.topics import Topics


def as_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make commands take the embedded broker for a real one; it has no configuration, and finds no offsets by time."""
    monkeypatch.setattr(Topics, "embedded", lambda self: False)
    monkeypatch.setattr(Topics, "_config", lambda self, names: {})
    monkeypatch.setattr(
        PartitionReader, "offsets_at", lambda self, places, time_ms: {place: self.bounds(*place)[0] for place in places}
    )
