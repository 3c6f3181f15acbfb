"""Writes a recording of a simulated installation, as `tamiyo record` would."""

from collections.abc import Iterable
from pathlib import Path

from tamiyo.evaluation.watch.installation_log import LoggedRecord
from tamiyo.schemas.codec import encode
from tamiyo.streams.messages import Message
from tamiyo.streams.recording.avro_log import LogWriter, digest
from tamiyo.streams.recording.recording import Manifest, Part
from tamiyo.streams.recording.topic_reader import Selection

PARTITIONS = 4


def make_recording(folder: Path, log: Iterable[LoggedRecord]) -> int:
    """Write a recording into a new folder; return the number of its messages.

    Args:
        folder: The recording's folder, which is made.
        log: Records in order of time.
    """
    folder.mkdir(parents=True)
    writers: dict[tuple[str, int], LogWriter] = {}
    for each in log:
        place = each.topic, sum(each.key.encode()) % PARTITIONS
        if place not in writers:
            writers[place] = LogWriter(folder / f"{place[0]}-{place[1]}.avro", *place)
        writer, value = writers[place], encode(each.record)
        writer.write(Message(*place, writer.next_offset, each.time_ms, each.key.encode(), value))
    parts = []
    for (topic, partition), writer in writers.items():
        writer.finish()
        part = Part(topic=topic, partition=partition, start=0, end=writer.next_offset, messages=writer.messages)
        written = {"first_ms": writer.first_ms, "last_ms": writer.last_ms, "sha256": digest(writer.path)}
        parts.append(part.model_copy(update={**written, "size_bytes": writer.path.stat().st_size}))
    Manifest(
        complete=True, tamiyo="simulated", recorded_at="2026-01-01T00:00:00+00:00", prefix="", partitions=PARTITIONS,
        selection=Selection(), parts=parts,
    ).write(folder)  # fmt: skip
    return sum(part.messages for part in parts)
