"""Collects the evidence of a fault run from its broker and its store, when everything has stopped."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
from confluent_kafka import Consumer, TopicPartition

from tamiyo.evaluation.faults.ledger import Checkpoint, Entry, Evidence, Held, Ledger, Place, Sample
from tamiyo.models.checkpoint import CheckpointStore, checksum, load
from tamiyo.schemas.client.partition_reader import OffsetRange, PartitionReader
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import BY_NAME, CATALOGUE
from tamiyo.streams.messages import Message
from tamiyo.streams.stages.registry import STAGES

TIMEOUT_S = 10.0
NAMES = [name for topic in CATALOGUE for name in (topic.name, topic.dead_letters, topic.late)]


class Collector:
    """Reads topics and committed offsets of one installation without joining a group.

    Methods raise KafkaException, as librdkafka does, while the broker is down.
    """

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        self._kafka = kafka
        self._names = names
        self._readers: dict[str, Any] = {}

    def close(self) -> None:
        """Leave the broker."""
        for reader in self._readers.values():
            reader.close()

    def _reader(self, group: str = "tamiyo-faults") -> Any:
        if group not in self._readers:
            own = {"group.id": self._names.full(group), "enable.auto.commit": False, "log_level": 0}
            self._readers[group] = Consumer(self._kafka.librdkafka(**own, **{"enable.partition.eof": False}))
        return self._readers[group]

    def partitions(self) -> list[Place]:
        """Return all partitions of all topics of the installation."""
        present = self._reader().list_topics(timeout=TIMEOUT_S).topics
        return [
            (name, number) for name in NAMES for full in (self._names.full(name),) if full in present
            for number in sorted(present[full].partitions)
        ]  # fmt: skip

    def ends(self, places: Iterable[Place]) -> dict[Place, int]:
        """Return the end offset of each partition."""
        return {
            (name, number): self._reader().get_watermark_offsets(
                TopicPartition(self._names.full(name), number), timeout=TIMEOUT_S
            )[1]
            for name, number in places
        }

    def committed(self, partitions: int) -> dict[Held, int]:
        """Return the offsets that the stages' groups have committed for their inputs."""
        found: dict[Held, int] = {}
        for stage in STAGES.values():
            inputs = [topic.name for topic in stage.load().inputs]
            places = [TopicPartition(self._names.full(name), n) for name in inputs for n in range(partitions)]
            for each in self._reader(stage.group).committed(places, timeout=TIMEOUT_S):
                if each.offset >= 0:
                    found[stage.group, self._names.bare(each.topic), each.partition] = each.offset
        return found

    def behind(self, partitions: int) -> bool:
        """Return whether a stage has not committed all of its inputs."""
        committed = self.committed(partitions)
        ends = self.ends({(topic, number) for _, topic, number in committed})
        return any(offset < ends[topic, number] for (_, topic, number), offset in committed.items())

    def sample(self, places: list[Place]) -> Sample:
        """Return the committed offsets, and the topics' ends read right after them."""
        committed = self.committed(1 + max(number for _, number in places))
        return Sample(committed, self.ends(places))

    def messages(self) -> dict[str, list[Message]]:
        """Return all messages of all topics; raise BrokerError if they cannot be read."""
        ends = self.ends(self.partitions())
        found: dict[str, list[Message]] = {name: [] for name, _ in ends}
        ranges = [OffsetRange(self._names.full(name), number, 0, end) for (name, number), end in ends.items()]
        with PartitionReader(self._kafka) as reader:
            each: Any
            for each in reader.read(ranges):
                name = self._names.bare(each.topic())
                headers = tuple((key, value) for key, value in each.headers() or ())
                found[name].append(
                    Message(
                        name, each.partition(), each.offset(), each.timestamp()[1], each.key(), each.value(), headers
                    )
                )
        for messages in found.values():
            messages.sort(key=lambda each: (each.partition, each.offset))
        return found


def collect(kafka: KafkaSettings, names: TopicNames, store: str, ledger: Ledger) -> Evidence:
    """Return the evidence of a run whose processes have all ended."""
    collector = Collector(kafka, names)
    try:
        messages = collector.messages()
        committed = collector.committed(1 + max(number for _, number in collector.partitions()))
    finally:
        collector.close()
    return Evidence(ledger, messages, committed, checkpoints(f"{store}/checkpoints"), kernels(f"{store}/kernels"))


def save(evidence: Evidence, folder: Path) -> None:
    """Write the messages of every topic as JSON lines, for the analysis of a violation."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, messages in evidence.messages.items():
        records = evidence.entries(BY_NAME[name]) if name in BY_NAME else [Entry(each, None) for each in messages]
        with (folder / f"{name}.jsonl").open("w") as file:
            for entry in records:
                each = entry.message
                line = {
                    "place": each.place,
                    "time_ms": each.timestamp_ms,
                    "key": each.key.decode("utf-8", "replace") if each.key is not None else None,
                    "headers": {key: each.header(key) for key, _ in each.headers},
                    "record": entry.record.model_dump(mode="json") if entry.record is not None else None,
                }
                file.write(json.dumps(line) + "\n")
    commits = {f"{group} {topic}:{number}": offset for (group, topic, number), offset in evidence.committed.items()}
    (folder / "committed.json").write_text(json.dumps(commits, indent=1))


def checkpoints(url: str) -> list[Checkpoint]:
    """Return the headers and checksums of all checkpoints in a store."""
    store = CheckpointStore(url)
    found = []
    for version in store.versions():
        data = store.read(store.file_name(version))
        _, header, _ = load(data)
        found.append(Checkpoint(version, header.experiences, header.updates, header.offsets, checksum(data)))
    return found


def kernels(url: str) -> dict[str, str]:
    """Return the SHA-256 of every kernel in a store, by kernel id."""
    files, root = fsspec.core.url_to_fs(url)
    if not files.exists(root):
        return {}
    paths = [path for path in files.ls(root, detail=False) if path.endswith(".safetensors")]
    return {
        path.rsplit("/", 1)[-1].removesuffix(".safetensors"): hashlib.sha256(files.cat_file(path)).hexdigest()
        for path in paths
    }
