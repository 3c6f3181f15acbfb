"""A recording's folder: its manifest, its files, and what is refused."""

import json
from pathlib import Path

import pytest

from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import RecordingError
from tamiyo.schemas.topics import CACHE_HIT_RATES, KERNEL_PERFORMANCE, LAYER_HEALTH, WINDOWS
from tamiyo.streams.recording.recording import MANIFEST, Recording
from tests.support.recordings import make_recording, message
from tests.support.telemetry import kernel_performance


def test_partitions_and_topics_merge_by_time(tmp_path: Path) -> None:
    kernel, layer, cache = KERNEL_PERFORMANCE.name, LAYER_HEALTH.name, CACHE_HIT_RATES.name
    make_recording(
        tmp_path,
        [
            message(kernel, 0, timestamp_ms=10),
            message(kernel, 1, timestamp_ms=30),
            message(kernel, 2, timestamp_ms=20),  # the clock ran back: the partition keeps its order
            message(kernel, 0, partition=1, timestamp_ms=25),
            message(layer, 0, timestamp_ms=5),
            message(cache, 0, timestamp_ms=30),
        ],
    )
    recording = Recording(tmp_path)
    topics = (KERNEL_PERFORMANCE, LAYER_HEALTH, CACHE_HIT_RATES)
    merged = [(time, each.topic, each.partition, each.offset) for time, each in recording.timeline(topics)]
    assert merged == [
        (5, layer, 0, 0),
        (10, kernel, 0, 0),
        (25, kernel, 1, 0),
        (30, cache, 0, 0),  # within a millisecond, topics that no watermark waits for come first
        (30, kernel, 0, 1),
        (30, kernel, 0, 2),
    ]
    assert recording.count(topics) == 6
    assert [each.place for each in recording.messages(KERNEL_PERFORMANCE, partition=1)] == [f"{kernel}:1:0"]
    assert recording.checkpoints is None


def test_files_that_changed_are_refused(tmp_path: Path) -> None:
    make_recording(tmp_path, [message(WINDOWS.name, n) for n in range(50)])
    recording = Recording(tmp_path)
    sizes: list[int] = []
    recording.verify([WINDOWS], sizes.append)
    path = tmp_path / f"{WINDOWS.name}-0.avro"
    assert sizes == [path.stat().st_size]
    whole = bytearray(path.read_bytes())
    whole[-20] ^= 1  # deflate alone would not notice
    path.write_bytes(bytes(whole))
    with pytest.raises(RecordingError, match=r"was changed after it was recorded \(its content\)"):
        recording.verify([WINDOWS])
    path.write_bytes(bytes(whole[:-30]))
    with pytest.raises(RecordingError, match=r"\(\d+ bytes instead of \d+\)"):
        recording.verify([WINDOWS])
    path.unlink()
    with pytest.raises(RecordingError, match="is missing"):
        recording.verify([WINDOWS])


def test_another_schema_version_is_refused_but_a_bad_message_is_not(tmp_path: Path) -> None:
    good = encode(kernel_performance(10))
    older = good[:2] + b"\x01\x02\x03\x04\x05\x06\x07\x08" + good[10:]
    make_recording(tmp_path / "older", [message(KERNEL_PERFORMANCE.name, n, older) for n in range(30)])
    with pytest.raises(RecordingError, match=r"can be read by this release; it was recorded by 0\.1\.0: "):
        Recording(tmp_path / "older").probe([KERNEL_PERFORMANCE])
    make_recording(
        tmp_path / "mixed", [message(KERNEL_PERFORMANCE.name, n, good if n == 3 else b"garbage") for n in range(30)]
    )
    Recording(tmp_path / "mixed").probe([KERNEL_PERFORMANCE])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "is not a recording: it has no manifest.json"),
        (lambda path: path.write_text("{"), "manifest.json is damaged"),
        (lambda path: path.write_text("[]"), "has format None, this release reads 1"),
        (lambda path: path.write_text(path.read_text().replace('"format": 1', '"format": 2')), "has format 2"),
        (
            lambda path: path.write_text(path.read_text().replace(WINDOWS.name, "../../etc/passwd")),
            "damaged at parts.0.topic",
        ),
        (lambda path: path.write_text(path.read_text().replace('"messages": 1', '"messages": -1')), "parts.0.messages"),
        (lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "more": 1})), "damaged at more"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, damage, words: str) -> None:  # type: ignore[no-untyped-def]
    make_recording(tmp_path, [message(WINDOWS.name, 0)])
    damage(tmp_path / MANIFEST)
    with pytest.raises(RecordingError) as error:
        Recording(tmp_path)
    assert words in str(error.value)


def test_an_interrupted_recording_is_not_readable_yet(tmp_path: Path) -> None:
    manifest = make_recording(tmp_path, [message(WINDOWS.name, 0)])
    manifest.parts[0].sha256 = ""
    manifest.write(tmp_path)
    with pytest.raises(RecordingError, match="run the same `tamiyo record` again"):
        Recording(tmp_path)
