"""Samples of an installation that runs: what its processes hold, how far its groups are behind."""

import gzip
import json
import time
import zlib
from collections.abc import Iterable, Mapping
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
    """Reads processes by name; one that has just ended is left out."""

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
    """How many records each group has not acknowledged: the log's end less the committed offset, all partitions.

    It is never 0 while runs go on, since a stage acknowledges nothing that an open window, an open span or a run's
    history still needs; what matters is that it does not grow.
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
        """Return the lag by stage, and the learner's after the offsets it has `learned`; None without a broker."""
        try:
            return self._read(learned)
        except KafkaException:
            # Seen with librdkafka 2: after a broker's restart an old client's calls go on failing, a new one's do not.
            self._admin = AdminClient(self._settings)
            return None

    def _read(self, learned: Mapping[str, int]) -> dict[str, int]:
        wanted = {each for _, inputs in self._inputs.values() for each in inputs} | set(self._experience)
        futures = self._admin.list_offsets({each: OffsetSpec.latest() for each in wanted}, request_timeout=5)
        ends = {(each.topic, each.partition): int(future.result().offset) for each, future in futures.items()}
        lag = {}
        for name, (group, inputs) in self._inputs.items():
            asked = [ConsumerGroupTopicPartitions(group, inputs)]
            result = self._admin.list_consumer_group_offsets(asked, request_timeout=5)[group].result()
            # Nothing committed (-1001) is nothing acknowledged.
            lag[name] = sum(ends[each.topic, each.partition] - max(each.offset, 0) for each in result.topic_partitions)
        lag[LEARNER] = sum(
            ends[each.topic, each.partition] - learned.get(str(each.partition), 0) for each in self._experience
        )
        return lag


class SampleFile:
    """One JSON object a line, each written out at once: a cut leaves everything before it."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("w", encoding="utf-8")
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the file was begun."""
        return time.monotonic() - self._began

    def write(self, kind: str, **fields: Any) -> None:
        """Append one line: its kind, the time in seconds since the beginning, and what it says."""
        line = {"kind": kind, "t": round(self.elapsed, 2), **fields}
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file, gzipped where its name says so; a last one that was cut is left out.

    Raises ConfigurationError where a file is not gzipped though its name says so.
    """
    lines: list[dict[str, Any]] = []
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigurationError(f"{path} cannot be unpacked: {error}") from error
    for text in data.decode("utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
