"""`tamiyo record`: topics into a folder of files, whole or resumable, never silently short."""

import fcntl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tamiyo.models.checkpoint_store import CheckpointStore
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import ConfigurationError, PolicyError, RecordingError, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import BY_NAME, DECISIONS
from tamiyo.streams.recording import avro_log as log_files
from tamiyo.streams.recording.avro_log import LogWriter
from tamiyo.streams.recording.recording import CHECKPOINTS_FOLDER, MANIFEST, Manifest, Part, Recording
from tamiyo.streams.recording.topic_reader import OffsetRange, Selection, TopicReader

LOOK_AGAIN_S = 0.5
LOCK = ".lock"


class Recorder:
    """Records a selection of an installation's topics into `folder`.

    A folder that holds an unfinished recording of the same selection is gone on with.
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
        """With `follow` it goes on until stopped. `checkpoint_url`: where the policies that decided are copied from.

        `on_plan` is told how many offsets are to be read in all, `on_progress` how many more have been.
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
        """Record until everything is there, or until `stopped`; return what is recorded.

        Raises:
            RecordingError: the folder holds something else, or cannot be written; what is there can be gone on with.
            ConfigurationError: it holds an unfinished recording of another selection.
            BrokerError: the broker does not answer or lacks a topic.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                manifest = self._begin()
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
                "the same command goes on with it"
            ) from error

    def _begin(self) -> Manifest | None:
        """Return the manifest of the unfinished recording that is here, None where the folder is empty."""
        if not (self._folder / MANIFEST).exists():
            strange = [path.name for path in self._folder.iterdir() if path.name not in (LOCK, f"{MANIFEST}.part")]
            if strange:
                raise RecordingError(f"{self._folder} is neither empty nor a recording: it holds {strange[0]}")
            return None
        manifest = Manifest.read(self._folder)
        if manifest.complete:
            raise RecordingError(f"{self._folder} holds a finished recording; choose another folder")
        if manifest.selection != self._selection or manifest.prefix != self._names.prefix:
            raise ConfigurationError(
                f"{self._folder} holds an unfinished recording of another selection or prefix; give the same options "
                "to go on with it, or choose another folder"
            )
        return manifest

    def _record(self, reader: TopicReader, manifest: Manifest | None, stopped: Callable[[], bool]) -> Manifest:
        if manifest is None:
            stretches = reader.resolve(self._selection)
            manifest = Manifest(
                tamiyo=version("esper-tamiyo"),
                recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
                prefix=self._names.prefix,
                partitions=reader.partitions([BY_NAME[name] for name in self._selection.topics]),
                selection=self._selection,
                parts=[Part(**_values(each)) for each in stretches],
            )
            manifest.write(self._folder)  # the plan: a recording that is cut off is finished as it was begun
        whole = self._take(reader, manifest, stopped)
        while self._follow:
            # Asked once more after the stop: what had happened by then is all there.
            last = stopped()
            self._extend(manifest, reader.resolve(self._selection))
            whole = self._take(reader, manifest, (lambda: False) if last else stopped)
            if last:
                break
            time.sleep(LOOK_AGAIN_S)
        return self._finish(manifest, complete=whole)

    def _extend(self, manifest: Manifest, stretches: Sequence[OffsetRange]) -> None:
        known = {(part.topic, part.partition): part for part in manifest.parts}
        for each in stretches:
            part = known.get((each.topic, each.partition))
            if part is None:
                manifest.parts.append(Part(**_values(each)))
            else:
                part.end = max(part.end, each.end)

    def _take(self, reader: TopicReader, manifest: Manifest, stopped: Callable[[], bool]) -> bool:
        """Record what is planned and not yet there; return whether it is all there now."""
        left = []
        for part in manifest.parts:
            place = (part.topic, part.partition)
            if place not in self._writers:
                self._writers[place] = LogWriter(self._folder / part.file, *place)
            start = max(part.start, self._writers[place].next_offset)
            if start < part.end:
                left.append(OffsetRange(*place, start, part.end))
        self._on_plan(sum(each.end - each.start for each in left))
        at = {(each.topic, each.partition): each.start for each in left}
        for message in reader.messages(left, runs=self._selection.runs, stopped=stopped):
            place = (message.topic, message.partition)
            self._writers[place].write(message)
            # In offsets, so that what a choice of runs leaves out counts as read.
            self._on_progress(message.offset + 1 - at[place])
            at[place] = message.offset + 1
        if stopped():
            return False
        self._on_progress(sum(each.end - at[each.topic, each.partition] for each in left))
        return True

    def _finish(self, manifest: Manifest, *, complete: bool) -> Manifest:
        """Give the files their names, copy the policies, and write what it all is."""
        for part in manifest.parts:
            writer = self._writers.pop((part.topic, part.partition))
            writer.finish()
            part.messages, part.first_ms, part.last_ms = writer.messages, writer.first_ms, writer.last_ms
            part.size_bytes = writer.path.stat().st_size
            part.sha256 = log_files.digest(writer.path)
        manifest.write(self._folder)
        if complete and self._checkpoint_url is not None:
            self._copy_policies(manifest, self._checkpoint_url)
        manifest.complete = complete
        manifest.write(self._folder)
        return manifest

    def _copy_policies(self, manifest: Manifest, url: str) -> None:
        here = CheckpointStore(f"file://{(self._folder / CHECKPOINTS_FOLDER).resolve()}")
        there = CheckpointStore(url)
        versions = set()
        for message in Recording(self._folder).messages(DECISIONS):
            try:
                versions.add(decode(message.value, DECISIONS.record).policy_version)  # type: ignore[attr-defined]
            except SchemaError:
                continue  # a replay has nothing to repeat there
        missing = []
        for number in sorted(versions - set(here.versions())):
            try:
                here.write(number, there.read(there.file_name(number)))
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


def _values(stretch: OffsetRange) -> dict[str, str | int]:
    return {"topic": stretch.topic, "partition": stretch.partition, "start": stretch.start, "end": stretch.end}
