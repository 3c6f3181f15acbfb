"""The feed of a recording: in order of time, with its progress; damage is shown."""

import threading
from pathlib import Path

import pytest

from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import RecordingError
from tamiyo.schemas.topics import CONTROL, DECISIONS, MODEL_PERFORMANCE
from tamiyo.streams.watch import views
from tamiyo.streams.watch.feeds import RecordingFeed, recording_feed
from tamiyo.streams.watch.feeds.observing import LATEST_MS, LONGEST_KEY
from tamiyo.streams.watch.history import History
from tests.streams.watch import watched
from tests.support.recordings import make_recording, message

RELEASED = Path(__file__).parents[3] / "data" / "recording-0.1.0"


def frames(count: int) -> list:  # type: ignore[type-arg]
    return [message(MODEL_PERFORMANCE.name, step, encode(watched.performance(step))) for step in range(count)]


def test_a_recording_is_read_with_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_feed, "BATCH", 3)
    make_recording(tmp_path / "r", [*frames(9), message(DECISIONS.name, 4, encode(watched.decision()))])
    history, progress = History(), []
    history.subscribe(lambda: progress.append((history.source.records, history.source.reading)))
    with RecordingFeed(history, tmp_path / "r") as feed:
        assert feed.wait_until_read(20)
    assert progress == [(3, True), (6, True), (9, True), (10, True), (10, False)]
    source = history.source
    assert (source.kind, source.name, source.prefix, source.live, source.total) == (
        "recording",
        "r",
        "live.",
        False,
        10,
    )
    assert (source.from_ms, source.to_ms) == (0, 8_000)
    assert views.run(history, "run-1", at_ms=4_000)["series"]["step"] == [0, 1, 2, 3, 4]
    assert views.fleet(history)["now_ms"] == 8_000


def test_a_recording_of_an_earlier_release_can_be_read() -> None:
    history = History()
    with RecordingFeed(history, RELEASED) as feed:
        assert feed.wait_until_read(20)
    assert (history.source.undecodable, len(history.runs)) == (0, 4)
    run_id = next(run_id for run_id, run in history.runs.items() if run.decisions)
    found = views.run(history, run_id)
    assert found["layers"]["health"][0] is not None
    assert views.decision(history, run_id, found["decisions"][0]["decision_id"])["actions"]


def test_one_run_of_a_recording(tmp_path: Path) -> None:
    other = message(MODEL_PERFORMANCE.name, 5, encode(watched.performance(7, run_id="run-2")), key=b"run-2")
    make_recording(tmp_path / "r", [*frames(5), other])
    history = History()
    with RecordingFeed(history, tmp_path / "r", run_id="run-2") as feed:
        assert feed.wait_until_read(20)
    assert list(history.runs) == ["run-2"]


def test_garbage_counts(tmp_path: Path) -> None:
    make_recording(tmp_path / "r", [*frames(2), message(MODEL_PERFORMANCE.name, 2, b"\xc3\x01garbage")])
    history = History()
    with RecordingFeed(history, tmp_path / "r") as feed:
        assert feed.wait_until_read(20)
    assert (history.source.undecodable, history.source.records) == (1, 3)


@pytest.mark.parametrize("kind", ["missing", "file", "empty folder", "without messages"])
def test_what_is_no_recording_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "r"
    if kind == "file":
        folder.write_text("x")
    elif kind == "empty folder":
        folder.mkdir()
    elif kind == "without messages":
        make_recording(folder, [])
    with pytest.raises(RecordingError, match=r"is not a recording|is empty"):
        RecordingFeed(History(), folder)


def test_damage_is_shown_and_what_was_read_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_feed, "BATCH", 1)
    make_recording(tmp_path / "r", frames(3))
    path = tmp_path / "r" / f"{MODEL_PERFORMANCE.name}-0.avro"
    path.write_bytes(path.read_bytes()[:-20])
    history = History()
    with RecordingFeed(history, tmp_path / "r") as feed, pytest.raises(RecordingError, match="is damaged"):
        feed.wait_until_read(20)
    assert (history.source.reading, "is damaged" in str(history.source.problem)) == (False, True)


def test_wrong_clocks_and_long_keys_are_cut(tmp_path: Path) -> None:
    value = encode(watched.performance(1))
    odd = [
        message(MODEL_PERFORMANCE.name, 0, value, timestamp_ms=-1),
        message(MODEL_PERFORMANCE.name, 1, value, timestamp_ms=2**62),
        message(CONTROL.name, 0, None, key=b"\xf0\x9f\x98\x80" * 100_000),
    ]
    make_recording(tmp_path / "r", odd)
    history = History()
    with RecordingFeed(history, tmp_path / "r") as feed:
        assert feed.wait_until_read(20)
    assert (history.source.from_ms, history.source.to_ms) == (0, LATEST_MS)
    assert [len(key) for key in history.orders._commands] == [LONGEST_KEY]


def test_a_bug_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_recording(tmp_path / "r", frames(3))
    history = History()
    monkeypatch.setattr(history, "take", lambda batch: 1 // 0)
    monkeypatch.setattr(threading, "excepthook", lambda given: None)
    with RecordingFeed(history, tmp_path / "r") as feed:
        feed.wait_until_read(20)
    assert "ZeroDivisionError" in str(history.source.problem)


def test_it_can_be_stopped_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_feed, "BATCH", 1)
    make_recording(tmp_path / "r", frames(50))
    history, first = History(), threading.Event()
    feed = RecordingFeed(history, tmp_path / "r")

    def wait_for_the_end() -> None:
        first.set()
        feed.stopping.wait(20)

    history.subscribe(wait_for_the_end)
    with feed:
        assert first.wait(20)
    assert history.source.records < 50
