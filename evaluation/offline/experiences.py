"""Reads experiences from a topic, a recording, or one file of a recording; the current revision of each decision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import BrokerError, ConfigurationError, DecodeError, RecordError, RecordingError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.learning import Experience
from tamiyo.schemas.topics import EXPERIENCE
from tamiyo.streams.messages import is_end
from tamiyo.streams.recording import avro_log
from tamiyo.streams.recording.recording import Recording


def encoded_experiences(source: str, kafka: Callable[[], KafkaSettings], names: TopicNames) -> Iterator[bytes | None]:
    """Yield the values of all messages with experiences, in order of each partition.

    Args:
        source: A recording's folder, one of its files, or the name of the experience topic; a name that ends in the
            catalogue's carries its own prefix.
        kafka: Returns the broker's settings; called for a topic only.
        names: The installation's topic names.

    Raises:
        ConfigurationError: `source` is none of these.
        RecordingError: A file is damaged, or holds another topic.
        BrokerError: The broker does not respond, or lacks the topic.
    """
    path = Path(source)
    if path.is_dir():
        recording = Recording(path)
        recording.verify([EXPERIENCE])
        return (each.value for each in recording.messages(EXPERIENCE))
    if path.is_file():
        topic, partition = avro_log.place(path)
        if topic != EXPERIENCE.name:
            raise RecordingError(f"{path} has messages of {topic}, expected those of {EXPERIENCE.name}")
        return (each.value for each in avro_log.read(path, topic, partition))
    if source == EXPERIENCE.name:
        return _topic(kafka(), names.full(source))
    if source.endswith(EXPERIENCE.name):
        return _topic(kafka(), source)
    raise ConfigurationError(
        f"there is no recording {source}: expected its folder, one of its files, or the topic {EXPERIENCE.name}"
    )


def current(values: Iterable[bytes | None], *, incomplete: bool = False) -> tuple[list[Experience], Counter[str]]:
    """Return one experience for each decision, and how many are left out, by reason.

    Of several revisions the highest counts, a complete one before an incomplete one.

    Args:
        values: Encoded experiences.
        incomplete: Count decisions whose reward may still change.

    Raises:
        RegistryError: The bytes need a schema that is not known yet, and the registry is unavailable.
    """
    newest: dict[str, Experience] = {}
    left_out: Counter[str] = Counter()
    for value in values:
        try:
            experience = decode(value, Experience)
        except DecodeError:
            left_out["undecodable"] += 1
            continue
        except RecordError:
            left_out["invalid"] += 1
            continue
        known = newest.get(experience.experience_id)
        if known is None or _rank(experience) > _rank(known):
            newest[experience.experience_id] = experience
    found = [each for each in newest.values() if each.complete or incomplete]
    if len(found) < len(newest):
        left_out["incomplete"] = len(newest) - len(found)
    return found, left_out


def _rank(experience: Experience) -> tuple[bool, int]:
    return experience.complete, experience.revision


def _topic(kafka: KafkaSettings, topic: str) -> Iterator[bytes | None]:
    with PartitionReader(kafka) as reader:
        ranges = reader.ranges(topic)
        if not ranges:
            raise BrokerError(f"the broker has no topic {topic}; `tamiyo topics create` creates it")
        for message in reader.read(ranges):
            if not is_end(message.value(), message.headers()):
                yield message.value()
