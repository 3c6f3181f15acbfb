"""A recording: a folder with one file for each partition, the policies that made its decisions, and a manifest."""

import heapq
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tamiyo.schemas.client.partition_reader import OffsetRange
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import RecordingError, SchemaError
from tamiyo.schemas.files import write_atomically
from tamiyo.schemas.topics import BY_NAME, Topic
from tamiyo.streams.messages import Message
from tamiyo.streams.recording import avro_log
from tamiyo.streams.recording.topic_reader import Selection

MANIFEST = "manifest.json"
CHECKPOINTS_FOLDER = "checkpoints"
PROBED = 20  # messages of a topic that are decoded before a replay starts; one of them must be readable


class Part(BaseModel):
    """One file: the planned range and the actual content."""

    model_config = ConfigDict(extra="forbid")

    topic: str
    partition: int = Field(ge=0, le=1_000_000)
    start: int = Field(ge=0, description="First offset to record")
    end: int = Field(ge=0, description="Offset after the last one to record")
    messages: int = Field(0, ge=0)
    first_ms: int | None = Field(None, description="Lowest Kafka time inside, ms since the epoch")
    last_ms: int | None = Field(None, description="Highest Kafka time inside, ms since the epoch")
    size_bytes: int = Field(0, ge=0)
    sha256: str = ""

    @field_validator("topic")
    @classmethod
    def _known(cls, topic: str) -> str:
        if topic not in BY_NAME:  # it becomes part of a file's name
            raise ValueError(f"no topic {topic!r} in the catalogue")
        return topic

    @classmethod
    def of(cls, planned: OffsetRange) -> "Part":
        """Return the part that is to hold a range."""
        return cls(topic=planned.topic, partition=planned.partition, start=planned.start, end=planned.end)

    @property
    def file(self) -> str:
        """Return the file's name, as Kafka names a partition's folder."""
        return f"{self.topic}-{self.partition}.avro"


class Manifest(BaseModel):
    """A recording's metadata, kept next to its files as JSON."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    complete: bool = Field(False, description="Whether everything planned is recorded")
    tamiyo: str = Field(description="Version that made the recording")
    recorded_at: str = Field(description="Start of the recording, ISO 8601, UTC")
    prefix: str = Field(pattern=r"^[A-Za-z0-9._-]{0,100}$", description="Prefix of the recorded topics")
    partitions: int = Field(ge=1, le=1_000_000)
    selection: Selection
    policy_versions: list[int] = Field([], description="Policies that made decisions, with their files in checkpoints/")
    policy_versions_missing: list[int] = Field([], description="Of such policies, those no longer in the store")
    parts: list[Part] = []

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`."""
        write_atomically(folder / MANIFEST, json.dumps(self.model_dump(mode="json"), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of `folder`; raises RecordingError where there is none, or not one of this format."""
        path = folder / MANIFEST
        if not path.is_file():
            raise RecordingError(f"{folder} is not a recording: it has no {MANIFEST}")
        try:
            values: Any = json.loads(path.read_bytes())
        except ValueError as error:
            raise RecordingError(f"{path} is damaged: {error}") from error
        version = values.get("format") if isinstance(values, dict) else None
        if version != 1:
            raise RecordingError(f"{path} has format {version!r}, this release reads 1: use the release that made it")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise RecordingError(f"{path} is damaged at {place}: {first['msg']}") from error


class Recording:
    """A finished recording, for reading."""

    def __init__(self, folder: Path) -> None:
        """Raise RecordingError where `folder` is not a recording, or one that was interrupted before its first end."""
        self.folder = folder
        self.manifest = Manifest.read(folder)
        if any(not part.sha256 for part in self.manifest.parts):
            raise RecordingError(
                f"{folder} is an interrupted recording; run the same `tamiyo record` again to finish it"
            )

    @property
    def checkpoints(self) -> str | None:
        """Return the fsspec URL of the recorded policies, None where none is recorded."""
        folder = self.folder / CHECKPOINTS_FOLDER
        return f"file://{folder.resolve()}" if folder.is_dir() else None

    def parts(self, topics: Sequence[Topic]) -> list[Part]:
        """Return the files of `topics`."""
        names = {topic.name for topic in topics}
        return [part for part in self.manifest.parts if part.topic in names]

    def count(self, topics: Sequence[Topic]) -> int:
        """Return how many messages of `topics` there are."""
        return sum(part.messages for part in self.parts(topics))

    def verify(self, topics: Sequence[Topic], progress: Callable[[int], None] = lambda _: None) -> None:
        """Raise RecordingError unless every file of `topics` matches its checksum; calls `progress` with each size."""
        for part in self.parts(topics):
            path = self.folder / part.file
            if avro_log.digest(path) != part.sha256:
                size = path.stat().st_size
                how = f"{size} bytes instead of {part.size_bytes}" if size != part.size_bytes else "its content"
                raise RecordingError(f"{path} was changed after it was recorded ({how}): record again")
            progress(part.size_bytes)

    def probe(self, topics: Sequence[Topic]) -> None:
        """Raise RecordingError where this release can decode no message of a topic, which has another schema."""
        for topic in topics:
            reasons = []
            for message, _ in zip(self.messages(topic), range(PROBED), strict=False):
                try:
                    decode(message.value, topic.record)
                    break
                except SchemaError as error:
                    reasons.append(str(error))
            else:
                if reasons:
                    raise RecordingError(
                        f"no message of {topic.name} in {self.folder} can be read by this release; it was recorded by "
                        f"{self.manifest.tamiyo}: {reasons[0]}"
                    )

    def messages(self, topic: Topic, partition: int | None = None) -> Iterator[Message]:
        """Yield the messages of a topic, one partition after the other, or those of one partition."""
        for part in sorted(self.parts([topic]), key=lambda each: each.partition):
            if partition in (None, part.partition):
                yield from self._read(part)

    def timeline(self, topics: Sequence[Topic]) -> Iterator[tuple[int, Message]]:
        """Yield (time, message) of all partitions of `topics`, merged in order of time.

        A partition keeps its order: where a clock ran back, the time is the highest so far. Within a millisecond,
        messages that no watermark waits for come first.
        """
        ranks = {topic.name: rank for rank, topic in enumerate(sorted(topics, key=_sporadic_first))}

        def timed(part: Part) -> Iterator[tuple[int, int, int, int, Message]]:
            newest = 0
            for message in self._read(part):
                newest = max(newest, message.timestamp_ms)
                yield newest, ranks[part.topic], part.partition, message.offset, message

        for time_ms, *_, message in heapq.merge(*map(timed, self.parts(topics))):
            yield time_ms, message

    def _read(self, part: Part) -> Iterator[Message]:
        return avro_log.read(self.folder / part.file, part.topic, part.partition)


def _sporadic_first(topic: Topic) -> tuple[bool, str]:
    return topic.periodic, topic.name
