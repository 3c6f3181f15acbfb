"""Records topics into a folder of files; an interrupted recording can be continued, and is never silently short."""

import fcntl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tamiyo.models.checkpoint_store import CheckpointStore
from tamiyo.schemas.client.partition_reader import OffsetRange
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import ConfigurationError, PolicyError, RecordingError, SchemaError
from tamiyo.schemas.files import PARTIAL_SUFFIX
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import BY_NAME, DECISIONS
from tamiyo.streams.recording import avro_log
from tamiyo.streams.recording.avro_log import LogWriter
from tamiyo.streams.recording.recording import CHECKPOINTS_FOLDER, MANIFEST, Manifest, Part, Recording
from tamiyo.streams.recording.topic_reader import Selection, TopicReader

FOLLOW_INTERVAL_S = 0.5
LOCK = ".lock"


class Recorder:
    """Records a selection of an installation's topics into `folder`.

    An unfinished recording of the same selection in the folder is continued.
    """

    def __init__(
        self,
        folder: Path,
        kafka: KafkaSettings,
        names: TopicNames,
        selection: Selection,
        *,
        follow: bool = False,
        checkpoint_url: str | None = None,
        on_plan: Callable[[int], None] = lambda _: None,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Prepare a recording.

        Args:
            folder: created if it does not exist.
            kafka: the broker to read from.
            names: the installation's topic names.
            selection: what to record.
            follow: continue with new messages until stopped.
            checkpoint_url: store that the policies which made decisions are copied from; None: copy none.
            on_plan: called with the number of offsets to read.
            on_progress: called with the number of offsets read since the last call.
        """
        self._folder = folder
        self._kafka = kafka
        self._names = names
        self._selection = selection
        self._follow = follow
        self._checkpoint_url = checkpoint_url
        self._on_plan = on_plan
        self._on_progress = on_progress
        self._writers: dict[tuple[str, int], LogWriter] = {}

    def run(self, stopped: Callable[[], bool] = lambda: False) -> Manifest:
        """Record until everything is read, or until `stopped`; return what is recorded.

        Raises:
            RecordingError: the folder holds something else, or cannot be written; what is recorded can be continued.
            ConfigurationError: it holds an unfinished recording of another selection.
            BrokerError: the broker does not respond or lacks a topic.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                manifest = self._unfinished()
                reader = TopicReader(self._kafka, self._names)
                try:
                    return self._record(reader, manifest, stopped)
                finally:
                    reader.close()
                    for writer in self._writers.values():
                        writer.abandon()
        except OSError as error:
            raise RecordingError(
                f"{self._folder} cannot be written: {error.strerror or error}; what is recorded so far is kept, and "
                "the same command continues it"
            ) from error

    def _unfinished(self) -> Manifest | None:
        """Return the manifest of the unfinished recording in the folder, None where the folder is empty."""
        if not (self._folder / MANIFEST).exists():
            foreign = [
                path.name for path in self._folder.iterdir() if path.name != LOCK and path.suffix != PARTIAL_SUFFIX
            ]
            if foreign:
                raise RecordingError(f"{self._folder} is neither empty nor a recording: it holds {foreign[0]}")
            return None
        manifest = Manifest.read(self._folder)
        if manifest.complete:
            raise RecordingError(f"{self._folder} holds a finished recording; choose another folder")
        if manifest.selection != self._selection or manifest.prefix != self._names.prefix:
            raise ConfigurationError(
                f"{self._folder} holds an unfinished recording of another selection or prefix; give the same options "
                "to continue it, or choose another folder"
            )
        return manifest

    def _record(self, reader: TopicReader, manifest: Manifest | None, stopped: Callable[[], bool]) -> Manifest:
        if manifest is None:
            ranges = reader.resolve(self._selection)
            manifest = Manifest(
                tamiyo=version("esper-tamiyo"),
                recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
                prefix=self._names.prefix,
                partitions=reader.partitions([BY_NAME[name] for name in self._selection.topics]),
                selection=self._selection,
                parts=[Part.of(each) for each in ranges],
            )
            manifest.write(self._folder)  # an interrupted recording is continued to the same ends
        complete = self._read(reader, manifest, stopped)
        while self._follow:
            # Ends are read once more after the stop, so that everything published before it is recorded.
            last = stopped()
            self._extend(manifest, reader.resolve(self._selection))
            complete = self._read(reader, manifest, (lambda: False) if last else stopped)
            if last:
                break
            time.sleep(FOLLOW_INTERVAL_S)
        return self._finish(manifest, complete=complete)

    def _extend(self, manifest: Manifest, ranges: Sequence[OffsetRange]) -> None:
        known = {(part.topic, part.partition): part for part in manifest.parts}
        for each in ranges:
            part = known.get((each.topic, each.partition))
            if part is None:
                manifest.parts.append(Part.of(each))
            else:
                part.end = max(part.end, each.end)

    def _read(self, reader: TopicReader, manifest: Manifest, stopped: Callable[[], bool]) -> bool:
        """Record what the manifest plans and the files lack; return whether it is complete now."""
        left = []
        for part in manifest.parts:
            place = (part.topic, part.partition)
            if place not in self._writers:
                self._writers[place] = LogWriter(self._folder / part.file, *place)
            start = max(part.start, self._writers[place].next_offset)
            if start < part.end:
                left.append(OffsetRange(*place, start, part.end))
        self._on_plan(sum(each.end - each.start for each in left))
        positions = {(each.topic, each.partition): each.start for each in left}
        for message in reader.messages(left, runs=self._selection.runs, stopped=stopped):
            place = (message.topic, message.partition)
            self._writers[place].write(message)
            # Counted in offsets, so that messages of runs that are not selected count as read.
            self._on_progress(message.offset + 1 - positions[place])
            positions[place] = message.offset + 1
        if stopped():
            return False
        self._on_progress(sum(each.end - positions[each.topic, each.partition] for each in left))
        return True

    def _finish(self, manifest: Manifest, *, complete: bool) -> Manifest:
        """Rename the files, copy the policies and complete the manifest."""
        for part in manifest.parts:
            writer = self._writers.pop((part.topic, part.partition))
            writer.finish()
            part.messages, part.first_ms, part.last_ms = writer.messages, writer.first_ms, writer.last_ms
            part.size_bytes = writer.path.stat().st_size
            part.sha256 = avro_log.digest(writer.path)
        manifest.write(self._folder)
        if complete and self._checkpoint_url is not None:
            self._copy_policies(manifest, self._checkpoint_url)
        manifest.complete = complete
        manifest.write(self._folder)
        return manifest

    def _copy_policies(self, manifest: Manifest, url: str) -> None:
        target = CheckpointStore(f"file://{(self._folder / CHECKPOINTS_FOLDER).resolve()}")
        source = CheckpointStore(url)
        versions = set()
        for message in Recording(self._folder).messages(DECISIONS):
            try:
                versions.add(decode(message.value, DECISIONS.record).policy_version)  # type: ignore[attr-defined]
            except SchemaError:
                continue  # no decision to repeat in a replay
        missing = []
        for number in sorted(versions - set(target.versions())):
            try:
                target.write(number, source.read(source.file_name(number)))
            except PolicyError:
                missing.append(number)
        manifest.policy_versions = sorted(versions - set(missing))
        manifest.policy_versions_missing = missing

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RecordingError(f"another process is recording into {self._folder}") from None
            yield
