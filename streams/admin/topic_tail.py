"""`tamiyo tail`: the records of a topic, decoded, a line each."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaException, Message, TopicPartition

from tamiyo.schemas.codec import decode
from tamiyo.schemas.connection import of_the_group
from tamiyo.schemas.display import printable
from tamiyo.schemas.errors import BrokerError, ConfigurationError, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.record import Record, Tensor
from tamiyo.schemas.topics import BY_NAME
from tamiyo.streams.admin.broker_wait import wait_for_broker

POLL_S = 0.2
METADATA_TIMEOUT_S = 10.0
SHORT = 40  # characters of a text that still fits a row


@dataclass(frozen=True, slots=True)
class TopicLine:
    """One message: where it is, and what it says."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    headers: dict[str, str]
    value: dict[str, Any]

    def json(self) -> str:
        """Return the line as one JSON object."""
        place = {"topic": self.topic, "partition": self.partition, "offset": self.offset}
        return json.dumps({**place, "timestamp_ms": self.timestamp_ms, "headers": self.headers, "value": self.value})

    def row(self) -> str:
        """Return the line as columns for people: place, time, run, and the fields that are one short value."""
        fields = "  ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={printable(str(value))}"
            for name, value in self.value.items()
            if name != "run_id"
            and (isinstance(value, int | float) or (isinstance(value, str) and 0 < len(value) <= SHORT))
        )
        time = datetime.fromtimestamp(self.timestamp_ms / 1_000, UTC).strftime("%H:%M:%S.%f")[:-3]
        run_id = printable(str(self.value.get("run_id", "-")))
        return f"{self.partition:>3} {self.offset:>8}  {time}  {run_id:<16}  {fields}"


def follow(
    topic: str,
    kafka: KafkaSettings,
    names: TopicNames,
    *,
    beginning: bool,
    forever: bool,
    limit: int | None = None,
    run_id: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[TopicLine]:
    """Yield the messages of `topic` (a catalogue name, or its `.dlq` or `.late`).

    Unless `forever`, it ends when every partition was read to where it ended at the start.

    Raises:
        ConfigurationError: the catalogue has no such topic.
        BrokerError: the broker does not answer, or has no such topic.
    """
    bare = names.bare(topic)
    if bare.removesuffix(".dlq").removesuffix(".late") not in BY_NAME:
        raise ConfigurationError(f"no topic {topic!r} in the catalogue; `tamiyo topics list` names them")
    full = names.full(bare)
    wait_for_broker(kafka)
    consumer = Consumer(kafka.librdkafka(log_level=0, **{"group.id": "tamiyo-tail", "enable.auto.commit": False}))
    try:
        partitions = _partitions(consumer, full, kafka)
        start = OFFSET_BEGINNING if beginning else OFFSET_END
        consumer.assign([TopicPartition(full, partition, start) for partition in partitions])
        marks = {p: consumer.get_watermark_offsets(TopicPartition(full, p)) for p in partitions}
        left = {p for p, (low, high) in marks.items() if beginning and high > low}
        shown = 0
        while (forever or left) and not stopped():
            message = consumer.poll(POLL_S)
            if message is None or (message.error() is not None and of_the_group(message.error())):
                continue
            if message.error():
                raise BrokerError(f"reading {full}: {message.error().str()}")
            if message.offset() + 1 >= marks[message.partition()][1]:
                left.discard(message.partition())
            line = read(message, bare)
            if run_id is not None and line.value.get("run_id") != run_id:
                continue
            yield line
            shown += 1
            if limit is not None and shown >= limit:
                return
    finally:
        consumer.close()


def read(message: Message, bare: str) -> TopicLine:
    """Decode one message; bytes that are not the topic's record are shown as they are, with the reason."""
    headers = {name: (value or b"").decode(errors="replace") for name, value in message.headers() or []}
    topic = BY_NAME[bare.removesuffix(".dlq").removesuffix(".late")]
    try:
        value = to_json_values(decode(message.value(), topic.record))
    except SchemaError as error:
        value = {"undecodable": str(error), "bytes": (message.value() or b"").hex()}
    return TopicLine(bare, message.partition(), message.offset(), message.timestamp()[1], headers, value)


def to_json_values(record: Record) -> dict[str, Any]:
    """Return a record as JSON values: tensors as nested lists, masks as lists of 0 and 1."""
    return {name: _plain(getattr(record, name)) for name in type(record).model_fields}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.numpy().tolist()
    if isinstance(value, Record):
        return to_json_values(value)
    if isinstance(value, bytes):
        return list(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _partitions(consumer: Consumer, topic: str, kafka: KafkaSettings) -> list[int]:
    try:
        metadata = consumer.list_topics(topic, timeout=METADATA_TIMEOUT_S).topics[topic]
    except KafkaException as error:
        raise BrokerError(f"{kafka.bootstrap_servers} did not answer: {error.args[0].str()}") from error
    if metadata.error is not None or not metadata.partitions:
        raise BrokerError(f"the broker has no topic {topic}; `tamiyo topics create` makes it")
    return sorted(metadata.partitions)
