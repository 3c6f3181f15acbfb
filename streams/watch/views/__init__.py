"""Views: JSON documents made of a history, for the page and the terminal.

Each function returns the whole document, or only what changed after a revision. `at_ms` makes it as of a past time.
"""

from typing import Any

from tamiyo.streams.watch.history import History

Document = dict[str, Any]


class UnknownIdError(KeyError):
    """The history has no run or decision of this id (at that time)."""


def fleet(history: History, *, at_ms: int | None = None, after: int = 0) -> Document:
    """Return all runs."""
    raise NotImplementedError


def run(history: History, run_id: str, *, at_ms: int | None = None, after: int = 0) -> Document:
    """Return one run; raises UnknownIdError."""
    raise NotImplementedError


def decision(history: History, run_id: str, decision_id: str, *, at_ms: int | None = None, after: int = 0) -> Document:
    """Return one decision; raises UnknownIdError."""
    raise NotImplementedError


def policy(history: History, *, at_ms: int | None = None, after: int = 0) -> Document:
    """Return the policies and their versions."""
    raise NotImplementedError


def installation(history: History, *, at_ms: int | None = None, after: int = 0) -> Document:
    """Return topics, stages, shed share, dead letters and standing orders."""
    raise NotImplementedError
