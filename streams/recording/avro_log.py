"""One partition as a file: an Avro object container, which every Avro library reads.

A file is named `.part` while it is written. After a crash it is valid up to its last complete block, and writing
continues from there.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import fastavro
from fastavro.schema import to_parsing_canonical_form
from fastavro.write import Writer

from tamiyo.schemas.errors import RecordingError
from tamiyo.streams.messages import Message

SCHEMA: Any = fastavro.parse_schema(
    {
        "type": "record",
        "name": "RecordedMessage",
        "namespace": "tamiyo",
        "doc": "One Kafka message. The container's metadata names the topic and the partition.",
        "fields": [
            {"name": "offset", "type": "long"},
            {"name": "timestamp_ms", "type": "long", "doc": "Kafka's, milliseconds since the epoch."},
            {"name": "key", "type": ["null", "bytes"]},
            {"name": "value", "type": ["null", "bytes"], "doc": "As it came, its schema's marker included."},
            {
                "name": "headers",
                "type": {
                    "type": "array",
                    "items": {
                        "type": "record",
                        "name": "Header",
                        "fields": [{"name": "name", "type": "string"}, {"name": "value", "type": ["null", "bytes"]}],
                    },
                },
            },
        ],
    }
)
CANONICAL = to_parsing_canonical_form(SCHEMA)
CODEC = "deflate"  # the only compression that the Avro specification requires of every reader
BLOCK_BYTES = 256 * 1024


def partial(path: Path) -> Path:
    """Return the name of `path` while it is written."""
    return path.with_name(f"{path.name}.part")


def read(path: Path, topic: str, partition: int) -> Iterator[Message]:
    """Yield the messages of a file in order of offset; raises RecordingError where its bytes are damaged."""
    newest = -1
    for message in _messages(path, topic, partition):
        if message.offset <= newest:
            raise RecordingError(f"{path}: offset {message.offset} follows {newest}: the file was changed")
        newest = message.offset
        yield message


def place(path: Path) -> tuple[str, int]:
    """Return topic and partition of a file; raises RecordingError where it is not one of a recording."""
    try:
        with path.open("rb") as file:
            metadata = fastavro.reader(file).metadata
        return str(metadata["tamiyo.topic"]), int(metadata["tamiyo.partition"])
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # fastavro raises many kinds
        raise RecordingError(f"{path} is not a file of a recording, as `tamiyo record` writes them") from error


def _messages(path: Path, topic: str, partition: int) -> Iterator[Message]:
    newest: int | None = None
    try:
        with path.open("rb") as file:
            for each in _reader(file):
                message = _message(each, topic, partition)
                newest = message.offset
                yield message
    except RecordingError:
        raise
    except FileNotFoundError:
        raise RecordingError(f"{path} is missing: the recording is incomplete") from None
    except Exception as error:  # fastavro and zlib raise many kinds
        after = "at its beginning" if newest is None else f"after offset {newest}"
        raise RecordingError(f"{path} is damaged {after}: {type(error).__name__}: {error}") from error


def _reader(file: BinaryIO) -> Any:
    """Return fastavro's reader of a file. Without a schema to resolve to, it reads twice as fast."""
    found = fastavro.reader(file)
    if to_parsing_canonical_form(found.writer_schema) == CANONICAL:
        return found
    file.seek(0)
    return fastavro.reader(file, SCHEMA)


def _message(values: Any, topic: str, partition: int) -> Message:
    return Message(
        topic,
        partition,
        values["offset"],
        values["timestamp_ms"],
        values["key"],
        values["value"],
        tuple((each["name"], each["value"]) for each in values["headers"]),
    )


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, hex; raises RecordingError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise RecordingError(f"{path} is missing: the recording is incomplete") from None
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error}") from error


class LogWriter:
    """Appends messages to the file of one partition, after those that are there already.

    Methods raise OSError where the disk is full or missing.
    """

    def __init__(self, path: Path, topic: str, partition: int) -> None:
        self.path = path
        self.messages = 0
        self.next_offset = 0
        """Nothing below it is missing from the file; 0 where the file is new."""
        self.first_ms: int | None = None
        self.last_ms: int | None = None
        if path.exists():
            path.replace(partial(path))
        self._recover(topic, partition)
        # In append mode fastavro continues after the existing header.
        self._file: Any = partial(path).open("a+b")
        metadata = {"tamiyo.topic": topic, "tamiyo.partition": str(partition)}
        self._writer: Any = Writer(self._file, SCHEMA, codec=CODEC, sync_interval=BLOCK_BYTES, metadata=metadata)

    def write(self, message: Message) -> None:
        """Append one message."""
        self._writer.write(
            {
                "offset": message.offset,
                "timestamp_ms": message.timestamp_ms,
                "key": message.key,
                "value": message.value,
                "headers": [{"name": name, "value": value} for name, value in message.headers],
            }
        )
        self._count(message)

    def finish(self) -> None:
        """Flush, sync and rename the file."""
        self._writer.flush()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        partial(self.path).replace(self.path)

    def abandon(self) -> None:
        """Close the file as `.part`, valid up to its last complete block."""
        with contextlib.suppress(OSError):  # a full disk: closing writes the buffer once more
            self._file.close()

    def _count(self, message: Message) -> None:
        self.messages += 1
        self.next_offset = message.offset + 1
        ms = message.timestamp_ms
        self.first_ms = ms if self.first_ms is None else min(self.first_ms, ms)
        self.last_ms = ms if self.last_ms is None else max(self.last_ms, ms)

    def _recover(self, topic: str, partition: int) -> None:
        """Count the messages of an existing file, and truncate an incomplete last block."""
        path = partial(self.path)
        if not path.exists():
            return
        complete = 0
        with contextlib.suppress(Exception), path.open("rb") as file:  # on any error, the rest is not a block
            for block in fastavro.block_reader(file, SCHEMA):
                messages = [_message(each, topic, partition) for each in block]
                for message in messages:
                    self._count(message)
                complete = block.offset + block.size
        if complete:
            os.truncate(path, complete)
        else:
            path.unlink()
