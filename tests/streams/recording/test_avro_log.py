"""A partition as a file: complete, truncated, damaged."""

import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import fastavro
import pytest

from tamiyo.schemas.errors import RecordingError
from tamiyo.streams.messages import Message
from tamiyo.streams.recording.avro_log import LogWriter, partial, place, read
from tests.support.recordings import message

TOPIC = "tamiyo.health.windows"


def messages(count: int) -> list[Message]:
    """Return messages of incompressible bytes, with gaps between their offsets as after compaction."""
    noise = random.Random(0)
    return [
        message(TOPIC, 3 * n, noise.randbytes(2000), headers=(("tamiyo-id", b"a"), ("empty", None)))
        for n in range(count)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / f"{TOPIC}-0.avro"


def write(path: Path, written: list[Message]) -> LogWriter:
    writer = LogWriter(path, TOPIC, 0)
    for each in written:
        writer.write(each)
    return writer


def test_messages_are_read_as_written(path: Path) -> None:
    written = [*messages(400), message(TOPIC, 2000, None, key=None)]
    writer = write(path, written)
    assert not path.exists()
    writer.finish()
    assert list(read(path, TOPIC, 0)) == written
    assert (writer.messages, writer.next_offset, writer.first_ms, writer.last_ms) == (401, 2001, 0, 2_000_000)
    # Any Avro library reads it, including its metadata.
    with path.open("rb") as file:
        foreign = fastavro.reader(file)
        assert foreign.metadata["tamiyo.topic"] == TOPIC
        assert [each["offset"] for each in foreign][:3] == [0, 3, 6]


@pytest.mark.parametrize("cut", [1, 1_000, 100_000])
def test_a_truncated_file_continues_after_its_last_complete_block(path: Path, cut: int) -> None:
    written = messages(400)
    write(path, written[:300]).abandon()
    os.truncate(partial(path), partial(path).stat().st_size - cut)
    writer = LogWriter(path, TOPIC, 0)
    assert 0 < writer.messages < 300
    assert writer.next_offset == written[writer.messages - 1].offset + 1
    for each in written[writer.messages :]:
        writer.write(each)
    writer.finish()
    assert list(read(path, TOPIC, 0)) == written


def test_a_file_without_a_complete_header_is_started_anew(path: Path) -> None:
    partial(path).write_bytes(b"Obj\x01 and then the power went")
    writer = LogWriter(path, TOPIC, 0)
    assert (writer.messages, writer.next_offset) == (0, 0)
    writer.finish()
    assert list(read(path, TOPIC, 0)) == []


def test_a_finished_file_can_be_continued(path: Path) -> None:
    written = messages(10)
    write(path, written[:4]).finish()
    writer = LogWriter(path, TOPIC, 0)
    assert (writer.messages, writer.first_ms, writer.last_ms) == (4, 0, 9_000)
    for each in written[4:]:
        writer.write(each)
    writer.finish()
    assert list(read(path, TOPIC, 0)) == written


def test_damage_is_an_error_with_its_place(path: Path) -> None:
    write(path, messages(400)).finish()
    whole = path.read_bytes()
    path.write_bytes(whole[:-100_000])
    with pytest.raises(RecordingError, match=r"windows-0.avro is damaged after offset \d+: EOFError"):
        list(read(path, TOPIC, 0))
    path.write_bytes(b"not avro")
    with pytest.raises(RecordingError, match="is damaged at its beginning"):
        list(read(path, TOPIC, 0))
    path.unlink()
    with pytest.raises(RecordingError, match="is missing: the recording is incomplete"):
        list(read(path, TOPIC, 0))


def test_random_damage_never_raises_anything_else(path: Path) -> None:
    write(path, messages(5)).finish()
    whole, chance = path.read_bytes(), random.Random(1)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(bytes(damaged))
        try:
            list(read(path, TOPIC, 0))
        except RecordingError:
            continue


@pytest.mark.parametrize("offset", [2, 6])
def test_offsets_that_repeat_or_run_back_are_refused(path: Path, offset: int) -> None:
    write(path, [*messages(3), message(TOPIC, offset)]).finish()
    with pytest.raises(RecordingError, match=f"offset {offset} follows 6"):
        list(read(path, TOPIC, 0))


def test_a_full_disk_keeps_complete_blocks(path: Path) -> None:
    # A file size limit causes the same error from the same call as a full disk.
    script = f"""
import resource, sys
from pathlib import Path
from tests.streams.recording.test_avro_log import messages, write
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, {resource.RLIM_INFINITY}))
try:
    write(Path({str(path)!r}), messages(400))
except OSError:
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[3], check=False)
    assert done.returncode == 7
    written = messages(400)
    writer = LogWriter(path, TOPIC, 0)
    assert writer.messages > 0
    for each in written[writer.messages :]:
        writer.write(each)
    writer.finish()
    assert list(read(path, TOPIC, 0)) == written


def test_a_file_names_its_topic_and_partition(path: Path) -> None:
    write(path, messages(3)).finish()
    assert place(path) == (TOPIC, 0)


@pytest.mark.parametrize("content", [b"", b"not a recording", b"Obj\x01\x00"])
def test_another_file_names_none(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(RecordingError, match="is not a file of a recording, as `tamiyo record` writes them"):
        place(path)


def test_a_missing_file_names_none(path: Path) -> None:
    with pytest.raises(RecordingError, match="cannot be read: No such file"):
        place(path)
