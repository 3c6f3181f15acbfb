"""The embedded broker in the place of a real one, for what commands refuse to do there."""

import pytest

from tamiyo.streams.admin import runs
from tamiyo.streams.admin.topics import Topics


def as_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make commands take the embedded broker for a real one; it has no configuration, and finds no offsets by time."""
    monkeypatch.setattr(Topics, "embedded", lambda self: False)
    monkeypatch.setattr(Topics, "_config", lambda self, names: {})
    monkeypatch.setattr(runs, "_since", lambda reader, full, partitions, since_ms: reader.ranges(full))
