"""Reads a recording into a history."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from tamiyo.schemas.errors import RecordingError
from tamiyo.schemas.topics import CATALOGUE, Topic
from tamiyo.streams.recording.recording import Recording
from tamiyo.streams.watch.feeds.feed import Feed
from tamiyo.streams.watch.feeds.observing import Observer
from tamiyo.streams.watch.history import History, Source

BATCH = 200  # messages: a view waits for no more than these


class RecordingFeed(Feed):
    """Reads a recording in order of time, while the views already show what is read."""

    def __init__(
        self, history: History, folder: Path, *, topics: Sequence[Topic] = CATALOGUE, run_id: str | None = None
    ) -> None:
        """Open a recording.

        Args:
            history: What it is read into.
            folder: The recording's folder.
            topics: The topics to read.
            run_id: The run to read; None: all.

        Raises:
            RecordingError: The folder is no recording, is unfinished, or has no message of the topics.
        """
        super().__init__(history)
        self._recording = Recording(folder)
        self._topics = topics
        self._observer = Observer(run_id)
        total = self._recording.count(topics)
        if total == 0:
            raise RecordingError(f"{folder} is empty: it has no message of {len(topics)} topics")
        name, prefix = folder.resolve().name, self._recording.manifest.prefix
        history.source = Source("recording", name, prefix, live=False, total=total)

    def read_all(self) -> None:
        """Read the recording; raises RecordingError where a file is damaged."""
        messages = (message for _, message in self._recording.timeline(self._topics))
        while not self.stopping.is_set():
            batch = list(islice(messages, BATCH))
            if not batch:
                break
            observed = self._observer.observe(batch)
            self.history.source.undecodable = self._observer.undecodable
            self.history.take(observed)
        self.finished()
