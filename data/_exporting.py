"""Exports topics and the joined table into files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tamiyo.data import _joined
from tamiyo.data._decoding import Counts, Decoded, decoded
from tamiyo.data._files import Format, TableFile
from tamiyo.data._joined import DecisionJoin
from tamiyo.data._sources import Choice, Plan, Source, Stopped
from tamiyo.data._tables import batches, tables_of
from tamiyo.schemas.errors import ExportError
from tamiyo.schemas.topics import DECISIONS, Topic

Progress = Callable[[int], None]


@dataclass(slots=True)
class Exported:
    """What an export has written."""

    files: list[TableFile] = field(default_factory=list)
    """The complete files."""
    counts: dict[str, Counts] = field(default_factory=dict)
    """What was read, by topic."""
    not_recorded: list[str] = field(default_factory=list)
    """Topics that a recording lacks: the joined table has null in their columns."""
    complete: bool = True
    """Whether nothing was left out because it was stopped."""


class _Interrupted(Exception):
    """The export was stopped."""


def prepare_folder(folder: Path, *, overwrite: bool) -> None:
    """Make a folder for an export.

    Args:
        folder: The folder.
        overwrite: Whether files in it may be replaced; files of other names stay.

    Raises:
        ExportError: It is not empty, and `overwrite` is False; or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise ExportError(f"the folder {folder} cannot be made or read: {error.strerror}") from error
    if occupied and not overwrite:
        raise ExportError(f"the folder {folder} is not empty; name another with --out, or replace files: --overwrite")


class Exporter:
    """Writes tables of topics into a folder; in memory there are a few thousand rows of each at a time.

    Complete files stay where an export is stopped or fails; an incomplete one is removed.
    """

    def __init__(
        self,
        source: Source,
        folder: Path,
        *,
        format: Format = Format.PARQUET,
        choice: Choice = Choice(),  # noqa: B008 (frozen)
        stopped: Stopped = lambda: False,
    ) -> None:
        """Prepare an export.

        Args:
            source: What is read.
            folder: It exists.
            format: Of the files.
            choice: Selects messages.
            stopped: Ends the export once it returns True.
        """
        self._source = source
        self._folder = folder
        self._format = format
        self._choice = choice
        self._stopped = stopped
        self._on_progress: Progress = lambda _: None

    def run(
        self,
        topics: Sequence[Topic],
        *,
        join: bool = False,
        on_plan: Progress = lambda _: None,
        on_progress: Progress = lambda _: None,
    ) -> Exported:
        """Export topics.

        Args:
            topics: The topics.
            join: Whether to write the joined table of decisions too.
            on_plan: Called once with the number of messages to read.
            on_progress: Called with the number of messages read since the last call.

        Raises:
            BrokerError: The broker does not respond, or lacks a topic.
            RecordingError: The recording lacks a topic, or is damaged.
            ExportError: A file cannot be written.
        """
        result, self._on_progress = Exported(), on_progress
        plans = self._source.plan(topics, self._choice)
        # What became of a decision comes after it, so only the decisions end at `until`.
        others = [each for each in _joined.OTHERS if join and self._source.has(each)]
        result.not_recorded = [each.name for each in _joined.OTHERS if join and each not in others]
        later = self._source.plan(others, replace(self._choice, until_ms=None))
        decisions = self._source.plan([DECISIONS], self._choice) if join else {}
        on_plan(sum(each.count for each in (*plans.values(), *later.values(), *decisions.values())))
        try:
            for topic in topics:
                self._export(plans[topic], result)
            if join:
                self._join(decisions[DECISIONS], later, result)
        except _Interrupted:
            result.complete = False
        return result

    def _export(self, plan: Plan, result: Exported) -> None:
        tables = tables_of(plan.topic)
        with ExitStack() as partial:
            files = [self._begin(partial, table.name, table.schema) for table in tables]
            for batch in batches(self._decoded(plan, result), plan.topic.record):
                for table, file in zip(tables, files, strict=True):
                    file.write(table.batch(batch))
            self._finish(files, result)

    def _join(self, decisions: Plan, others: dict[Topic, Plan], result: Exported) -> None:
        join = DecisionJoin()
        for topic, plan in others.items():
            join.add(topic, self._decoded(plan, result))
        with ExitStack() as partial:
            file = self._begin(partial, _joined.NAME, _joined.SCHEMA)
            for batch in batches(join.new(self._decoded(decisions, result)), DECISIONS.record):
                file.write(join.batch(batch))
            self._finish([file], result)

    def _begin(self, partial: ExitStack, name: str, schema: Any) -> TableFile:
        file = TableFile(self._folder, name, schema, self._format)
        partial.callback(file.discard)
        return file

    def _finish(self, files: Sequence[TableFile], result: Exported) -> None:
        if self._stopped():
            raise _Interrupted
        for file in files:
            file.finish()
            result.files.append(file)

    def _decoded(self, plan: Plan, result: Exported) -> Iterator[Decoded]:
        """Yield a topic's records; what is read twice, for its own table and the joined one, is counted once."""
        counts, reported = Counts(), 0
        for each in decoded(plan.messages(self._stopped), plan.topic, counts):
            yield each
            if counts.messages - reported >= PROGRESS_MESSAGES:
                self._on_progress(counts.messages - reported)
                reported = counts.messages
                if self._stopped():
                    raise _Interrupted
        if self._stopped():
            raise _Interrupted
        self._on_progress(max(0, plan.count - reported))  # with those that were not selected
        result.counts.setdefault(plan.topic.name, counts)


PROGRESS_MESSAGES = 1_000
"""Messages between two reports of progress."""
