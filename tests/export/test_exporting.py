"""Files are complete or not there, whatever stops an export."""

import gc
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tamiyo.data import _exporting, _tables
from tamiyo.data._exporting import Exporter, prepare_folder
from tamiyo.data._files import Format
from tamiyo.data._sources import Choice, RecordingSource
from tamiyo.schemas.errors import BrokerError, ExportError
from tamiyo.schemas.topics import DECISIONS, MODEL_PERFORMANCE, OUTCOMES, WINDOWS, Topic
from tamiyo.streams.messages import Message
from tamiyo.streams.process.interrupts import stoppable
from tests.export.support import TIME_MS, as_messages, record_topics
from tests.export.test_joined import outcome
from tests.export.test_round_trip import frame
from tests.support.factories import make_window
from tests.support.recordings import make_recording
from tests.support.runs import decision


class Interrupted:
    """Reads a recording; in the middle of one topic something happens."""

    def __init__(self, folder: Path, topic: Topic, event: Any) -> None:
        self._source = RecordingSource(folder)
        self._topic, self._event = topic, event

    def has(self, topic: Topic) -> bool:
        return self._source.has(topic)

    def close(self) -> None:
        self._source.close()

    def plan(self, topics: Sequence[Topic], choice: Any) -> Any:
        plans = self._source.plan(topics, choice)
        if self._topic in plans:
            plans[self._topic] = Halfway(plans[self._topic], self._event)
        return plans


class Halfway:
    """One topic's messages, with the event after the first half."""

    def __init__(self, plan: Any, event: Any) -> None:
        self.topic, self.count, self._plan, self._event = plan.topic, plan.count, plan, event

    def messages(self, stopped: Any) -> Iterator[Message]:
        for number, each in enumerate(self._plan.messages(stopped)):
            if number == self.count // 2:
                self._event()
            yield each


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(_tables, "BATCH_ROWS", 2)
    content = {MODEL_PERFORMANCE: [frame(n) for n in range(9)], WINDOWS: [make_window(n) for n in range(6)]}
    return record_topics(tmp_path / "recording", {**content, DECISIONS: [decision(str(n)) for n in range(5)]})


def test_results_after_until_count_for_decisions_before_it(tmp_path: Path) -> None:
    made = decision("a")
    late = as_messages(OUTCOMES, [outcome(made)], timestamp_ms=TIME_MS + 10**6)
    make_recording(tmp_path / "recording", [*as_messages(DECISIONS, [made, decision("b")]), *late])
    source = RecordingSource(tmp_path / "recording")
    Exporter(source, tmp_path, choice=Choice(until_ms=TIME_MS + 1)).run([DECISIONS, OUTCOMES], join=True)
    assert pq.read_table(tmp_path / "decisions.parquet")["outcome_status"].to_pylist() == ["executed"]
    assert pq.read_table(tmp_path / f"{OUTCOMES.name}.parquet").num_rows == 0


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_batches_become_row_groups_of_one_file(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_folder(out, overwrite=False)
    progress: list[int] = []
    planned: list[int] = []
    result = Exporter(RecordingSource(recording), out).run(
        [MODEL_PERFORMANCE, WINDOWS, DECISIONS], join=True, on_plan=planned.append, on_progress=progress.append
    )
    assert (result.complete, result.not_recorded) == (True, [])
    stored = pq.ParquetFile(out / f"{MODEL_PERFORMANCE.name}.parquet")
    assert (stored.num_row_groups, stored.read().column("step").to_pylist()) == (5, [*range(9)])
    rows = {file.path.name: file.rows for file in result.files}
    assert rows == {
        f"{MODEL_PERFORMANCE.name}.parquet": 9,
        f"{WINDOWS.name}.parquet": 6 * 3 * 21,
        f"{WINDOWS.name}.model.parquet": 6 * 11,
        f"{DECISIONS.name}.parquet": 5,
        "decisions.parquet": 5,
    }
    assert planned == [sum(progress)] == [9 + 6 + 5 + 5]
    assert files(out) == sorted(rows)


def test_ctrl_c_keeps_complete_files_and_removes_partial_ones(recording: Path, tmp_path: Path) -> None:
    with stoppable() as stop:
        source = Interrupted(recording, WINDOWS, lambda: os.kill(os.getpid(), signal.SIGINT))
        result = Exporter(source, tmp_path, stopped=stop.is_set).run([MODEL_PERFORMANCE, WINDOWS, DECISIONS])
    assert not result.complete
    assert [file.path.name for file in result.files] == [f"{MODEL_PERFORMANCE.name}.parquet"]
    assert files(tmp_path) == ["recording", f"{MODEL_PERFORMANCE.name}.parquet"]
    assert pq.read_table(tmp_path / f"{MODEL_PERFORMANCE.name}.parquet").num_rows == 9


@pytest.mark.parametrize("error", [BrokerError("gone"), KeyboardInterrupt()])
def test_an_error_removes_partial_files(recording: Path, tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        raise error

    out = tmp_path / "out"
    prepare_folder(out, overwrite=False)
    with pytest.raises(type(error)):
        Exporter(Interrupted(recording, DECISIONS, fail), out, format=Format.CSV).run([WINDOWS], join=True)
    assert files(out) == [f"{WINDOWS.name}.csv", f"{WINDOWS.name}.model.csv"]


def test_a_stop_while_other_topics_are_joined(recording: Path, tmp_path: Path) -> None:
    result = Exporter(RecordingSource(recording), tmp_path, stopped=lambda: True).run([], join=True)
    assert (result.complete, result.files, files(tmp_path)) == (False, [], ["recording"])


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """Let files grow to this size only, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 20_000])
@pytest.mark.parametrize("format", [*Format])
def test_a_full_disk_is_explained_and_leaves_nothing(
    format: Format, size: int, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)  # of destructors, which print a traceback
    out = tmp_path / "out"
    prepare_folder(out, overwrite=False)
    exporter = Exporter(RecordingSource(recording), out, format=format)
    try:
        with limited_files(size):
            exporter.run([WINDOWS])
    except ExportError as error:
        message = str(error)
    gc.collect()
    assert message.endswith(f"{WINDOWS.name}.{format} cannot be written: File too large")
    assert (files(out), ignored) == ([], [])


def test_a_name_that_cannot_be_written(recording: Path, tmp_path: Path) -> None:
    (tmp_path / f"{WINDOWS.name}.parquet.part").mkdir()
    with pytest.raises(ExportError, match=r"windows\.parquet cannot be written: Is a directory"):
        Exporter(RecordingSource(recording), tmp_path).run([WINDOWS])


def test_folders_are_made_and_occupied_ones_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    prepare_folder(folder, overwrite=False)
    prepare_folder(folder, overwrite=False)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="is not empty; name another with --out, or replace files: --overwrite"):
        prepare_folder(folder, overwrite=False)
    prepare_folder(folder, overwrite=True)
    with pytest.raises(ExportError, match="cannot be made or read: "):
        prepare_folder(folder / "notes.txt", overwrite=True)
    assert _exporting.PROGRESS_MESSAGES > 0
