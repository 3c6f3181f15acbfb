"""Creates recordings as the recorder does."""

from collections.abc import Iterable
from pathlib import Path

from tamiyo.schemas.topics import CATALOGUE
from tamiyo.streams.messages import Message
from tamiyo.streams.recording.avro_log import LogWriter, digest
from tamiyo.streams.recording.recording import Manifest, Part
from tamiyo.streams.recording.topic_reader import Selection


def message(
    topic: str, offset: int, value: bytes | None = b"value", *, partition: int = 0, **fields: object
) -> Message:
    """Return a message of run-1, a second after the previous offset."""
    values = {"timestamp_ms": 1000 * offset, "key": b"run-1", "headers": (), **fields}
    return Message(topic, partition, offset, value=value, **values)  # type: ignore[arg-type]


def make_recording(folder: Path, messages: Iterable[Message], **fields: object) -> Manifest:
    """Write messages, each partition's in order, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    writers: dict[tuple[str, int], LogWriter] = {}
    for each in messages:
        place = (each.topic, each.partition)
        if place not in writers:
            writers[place] = LogWriter(folder / f"{each.topic}-{each.partition}.avro", *place)
        writers[place].write(each)
    parts = []
    for (topic, partition), writer in writers.items():
        writer.finish()
        parts.append(
            Part(
                topic=topic,
                partition=partition,
                start=0,
                end=writer.next_offset,
                messages=writer.messages,
                first_ms=writer.first_ms,
                last_ms=writer.last_ms,
                size_bytes=writer.path.stat().st_size,
                sha256=digest(writer.path),
            )
        )
    values = {
        "complete": True,
        "tamiyo": "0.1.0",
        "recorded_at": "2026-05-01T10:00:00+00:00",
        "prefix": "live.",
        "partitions": 2,
        "selection": Selection(topics=tuple(topic.name for topic in CATALOGUE)),
        "parts": parts,
    }
    manifest = Manifest.model_validate({**values, **fields})
    manifest.write(folder)
    return manifest
