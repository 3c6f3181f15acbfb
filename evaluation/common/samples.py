"""Samples of a running installation: memory, handles and processor time of its processes, lag of its groups."""

import gzip
import json
import time
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import psutil
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import EXPERIENCE
from tamiyo.streams.stages.registry import STAGES

MB = 1e6
LEARNER = "learner"


class ProcessSampler:
    """Samples processes by name; processes that have just ended are omitted."""

    def __init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}

    def read(self, running: Iterable[tuple[str, int]]) -> dict[str, dict[str, float]]:
        """Return, by name, pid, rss_mb (10^6 bytes), fds, threads and cpu_s (user and system since its start)."""
        found: dict[str, dict[str, float]] = {}
        for name, pid in running:
            try:
                process = self._known.setdefault(pid, psutil.Process(pid))
                with process.oneshot():
                    times = process.cpu_times()
                    found[name] = {
                        "pid": pid,
                        "rss_mb": round(process.memory_info().rss / MB, 2),
                        "fds": process.num_fds(),
                        "threads": process.num_threads(),
                        "cpu_s": round(times.user + times.system, 2),
                    }
            except psutil.Error:
                self._known.pop(pid, None)
        return found


class LagSampler:
    """The lag of each group: the log's end minus the committed offset, summed over all partitions.

    It is never 0 while runs go on, since a stage commits nothing that an open window, an open reward span or a run's
    history still needs. A lag that grows shows a stage that is too slow.
    """

    def __init__(self, kafka: KafkaSettings, names: TopicNames, partitions: int) -> None:
        self._settings = kafka.librdkafka(**{"log_level": 0, "socket.timeout.ms": 5_000})
        self._admin = AdminClient(self._settings)
        numbers = range(partitions)
        self._inputs = {
            name: (
                names.full(each.group),
                [TopicPartition(names.full(topic.name), number) for topic in each.load().inputs for number in numbers],
            )
            for name, each in STAGES.items()
        }
        self._experience = [TopicPartition(names.full(EXPERIENCE.name), number) for number in numbers]

    def read(self, learned: Mapping[str, int]) -> dict[str, int] | None:
        """Return the lag by stage, and the learner's behind the offsets in `learned`; None while the broker is down."""
        try:
            return self._read(learned)
        except KafkaException:
            # With librdkafka 2 an old client's calls keep failing after a broker restart; a new client works.
            self._admin = AdminClient(self._settings)
            return None

    def _read(self, learned: Mapping[str, int]) -> dict[str, int]:
        places = {each for _, inputs in self._inputs.values() for each in inputs} | set(self._experience)
        futures = self._admin.list_offsets({each: OffsetSpec.latest() for each in places}, request_timeout=5)
        ends = {(each.topic, each.partition): int(future.result().offset) for each, future in futures.items()}
        lag = {}
        for name, (group, inputs) in self._inputs.items():
            wanted = [ConsumerGroupTopicPartitions(group, inputs)]
            result = self._admin.list_consumer_group_offsets(wanted, request_timeout=5)[group].result()
            # Offset -1001 means that nothing is committed.
            lag[name] = sum(ends[each.topic, each.partition] - max(each.offset, 0) for each in result.topic_partitions)
        lag[LEARNER] = sum(
            ends[each.topic, each.partition] - learned.get(str(each.partition), 0) for each in self._experience
        )
        return lag


class SampleFile:
    """One JSON object a line, each flushed at once: an interrupted soak keeps everything before the interruption.

    Lines are appended to a file that exists, after the incomplete line of a writer that was killed.
    """

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("a", encoding="utf-8")
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self._file.write("\n")
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Return the seconds since the file was opened."""
        return time.monotonic() - self._began

    def write(self, kind: str, **fields: Any) -> None:
        """Append one line: its kind, the seconds since the file was opened, and its fields."""
        line = {"kind": kind, "t": round(self.elapsed, 2), **fields}
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file, unpacked if its name ends in .gz, without those that a killed writer left incomplete.

    Raises:
        ConfigurationError: a file named .gz is not gzip data.
    """
    lines: list[dict[str, Any]] = []
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigurationError(f"{path} cannot be unpacked: {error}") from error
    for text in data.decode("utf-8").splitlines():
        with suppress(ValueError):
            lines.append(json.loads(text))
    return lines
