"""Reads topics or a recording for commands that show the views: what they need, with progress, until Ctrl-C."""

import difflib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tamiyo.schemas.display import printable
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.cli import options

if TYPE_CHECKING:
    from tamiyo.schemas.kafka import KafkaSettings, TopicNames
    from tamiyo.schemas.topics import Topic
    from tamiyo.streams.watch.feeds import Feed

QUIET_S = 1.0  # progress is shown of what takes longer
POLL_S = 0.1
NAMED = 5  # runs that a message names


@contextmanager
def started(feed: "Feed") -> "Iterator[Feed]":
    """Within the block, a feed reads."""
    feed.start()
    try:
        yield feed
    finally:
        feed.stop()


def wait(feed: "Feed", stopped: Callable[[], bool]) -> None:
    """Wait until a feed's history is read; show progress on standard error after a second.

    Raises:
        Exit: with status 130, if `stopped` meanwhile.
        TamiyoError: what ended the reading.
    """
    began = time.monotonic()
    with _progress() as show:
        while not feed.wait_until_read(POLL_S):
            if stopped():
                raise typer.Exit(130)
            if time.monotonic() - began > QUIET_S:
                show(feed.history.source)


@contextmanager
def _progress() -> "Iterator[Callable[[Any], None]]":
    """Within the block, show a source's progress: a bar on a terminal, else one line."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    out = Console(stderr=True)
    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=out, transient=True)
    task = None

    def show(source: Any) -> None:
        nonlocal task
        if task is None:
            task = bar.add_task("reading", total=None)
            if out.is_terminal:
                bar.start()
            else:
                sys.stderr.write(f"tamiyo: reading {printable(source.name)}\n")
                sys.stderr.flush()
        bar.update(task, completed=source.records, total=source.total)

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


def runs_on_topics(kafka: "KafkaSettings", names: "TopicNames") -> dict[str, int]:
    """Return the runs that have a topology, with when the oldest that is kept was published, ms since the epoch.

    Raises:
        BrokerError: the topic is missing or cannot be read.
    """
    from tamiyo.schemas.client.partition_reader import PartitionReader
    from tamiyo.schemas.errors import BrokerError
    from tamiyo.schemas.topics import TOPOLOGY

    full = names.full(TOPOLOGY.name)
    with PartitionReader(kafka) as reader:
        ranges = reader.ranges(full)
        if not ranges:
            raise BrokerError(f"the broker has no topic {full}; `tamiyo topics create` creates it")
        return _attached((message.key(), message.value(), message.timestamp()[1]) for message in reader.read(ranges))


def runs_of_recording(folder: Path) -> dict[str, int]:
    """Return the runs of a recording that have a topology, as `runs_on_topics` does.

    Raises:
        RecordingError: the folder is no recording.
    """
    from tamiyo.schemas.topics import TOPOLOGY
    from tamiyo.streams.recording.recording import Recording

    messages = Recording(folder).messages(TOPOLOGY)
    return _attached((message.key, message.value, message.timestamp_ms) for message in messages)


def _attached(messages: Iterable[tuple[Any, Any, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, value, time_ms in messages:
        if not isinstance(key, bytes):
            continue
        run_id = key.decode(errors="replace")
        if value is None:
            found.pop(run_id, None)  # it was forgotten
        else:
            found[run_id] = min(time_ms, found.get(run_id, time_ms))
    return found


def chosen_run(text: str, runs: Iterable[str]) -> str:
    """Return the run that a text names: its id, or a beginning of it that no other run has.

    An id of no known run is returned as it is: a run without a topology is known once its records are read.

    Raises:
        ConfigurationError: several runs begin so; the message names them.
    """
    known = set(runs)
    if text in known:
        return text
    fitting = sorted(each for each in known if each.startswith(text))
    if len(fitting) > 1:
        more = f" and {len(fitting) - NAMED:,} more" if len(fitting) > NAMED else ""
        raise ConfigurationError(f"{len(fitting):,} runs begin with {text}: {', '.join(fitting[:NAMED])}{more}")
    return fitting[0] if fitting else text


def unknown_run(text: str, runs: Iterable[str]) -> ConfigurationError:
    """Return the error for a run that is not there; it names the runs with the most similar ids."""
    known = sorted(runs)
    nearest = difflib.get_close_matches(text, known, NAMED, 0.5) or known[:NAMED]
    if not nearest:
        return ConfigurationError(f"no run {text}, and no other")
    return ConfigurationError(f"no run {text}; the nearest are {', '.join(nearest)} (`tamiyo runs` lists all)")


def open_feed(
    kafka: "KafkaSettings | None",
    recording: Path | None,
    topics: "Sequence[Topic]",
    *,
    since_ms: int | None = None,
    run_id: str | None = None,
    follow: bool = False,
) -> "Feed":
    """Return a feed of topics or of a recording, not started."""
    from tamiyo.streams.watch.feeds import RecordingFeed, TopicFeed
    from tamiyo.streams.watch.history import History

    if recording is not None:
        return RecordingFeed(History(), recording, topics=topics, run_id=run_id)
    assert kafka is not None
    return TopicFeed(
        History(), kafka, options.names(),
        since_ms=since_ms, topics=topics, run_id=run_id, follow=follow, stages=False,
    )  # fmt: skip


def open_listing(kafka: "KafkaSettings | None", recording: Path | None, since_ms: int | None) -> "Feed":
    """Return a feed of what a listing of runs needs, not started."""
    from tamiyo.streams.watch.feeds import ListingFeed, RecordingFeed
    from tamiyo.streams.watch.feeds.listing_feed import NEEDED
    from tamiyo.streams.watch.history import History

    if recording is not None:
        return RecordingFeed(History(), recording, topics=NEEDED)
    assert kafka is not None
    return ListingFeed(History(), kafka, options.names(), since_ms=since_ms)
