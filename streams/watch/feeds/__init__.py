"""Feeds: they read an installation's topics, or a recording, into a history."""

from collections.abc import Sequence
from pathlib import Path

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CATALOGUE, Topic
from tamiyo.streams.watch.history import History


class Feed:
    """Reads into a history, in a thread of its own. A context manager: starts and stops."""

    history: History

    def start(self) -> None:
        """Begin to read."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop reading and wait for the thread."""
        raise NotImplementedError

    def wait_until_read(self, timeout_s: float | None = None) -> bool:
        """Wait until the history as of the start is read; return whether it is.

        Raises:
            TamiyoError: what ended the reading.
        """
        raise NotImplementedError


class TopicFeed(Feed):
    """Reads topics from the beginning, or from `since_ms` on (compacted topics whole), then for ever if `follow`."""

    def __init__(
        self,
        history: History,
        kafka: KafkaSettings,
        names: TopicNames,
        *,
        since_ms: int | None = None,
        topics: Sequence[Topic] = CATALOGUE,
        run_id: str | None = None,
        follow: bool = True,
        stages: bool = True,
    ) -> None:
        """Args: `run_id`: decode only this run's records; `stages`: read lags of the stages too, every 3 s."""


class RecordingFeed(Feed):
    """Reads a recording in order of time."""

    def __init__(
        self, history: History, folder: Path, *, topics: Sequence[Topic] = CATALOGUE, run_id: str | None = None
    ) -> None:
        """Raises RecordingError where the folder is no recording."""
