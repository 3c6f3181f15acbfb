"""Dead letters: what stages set aside, read back with the reason, and what became of each since.

Everything that is known lies on the dead-letter topics themselves. Beside the letters there are notes of
`tamiyo dlq redrive` (`streams/redrive.py`): a claim says which letters are about to go back, a receipt that they have.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from tamiyo.schemas.codec import decode
from tamiyo.schemas.connection import of_the_group
from tamiyo.schemas.display import printable
from tamiyo.schemas.errors import BrokerError, ConfigurationError, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import BY_NAME, CATALOGUE, Topic
from tamiyo.streams.lines import readable
from tamiyo.streams.reaching import reach
from tamiyo.streams.tail import POISON_HEADER, REASON_HEADER, SOURCE_HEADER, STAGE_HEADER

NOTE_HEADER = "tamiyo-redrive"
"""On a note: `claim` or `receipt`. Its value is JSON."""
REQUEST_TIMEOUT_S = 20.0
# A partition that is new, or changes its leader, has none for a moment.
PASSING = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError._TRANSPORT)
POLL_S = 0.2
READ_PATIENCE_S = 30.0  # without a message of a partition that has more
SHOWN_BYTES = 160  # of a letter, on a terminal
VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|\b\d[\w.+-]*\b")


@dataclass(frozen=True, slots=True)
class Letter:
    """One message that a stage could not use, as it came."""

    topic: Topic
    """Where it came from."""
    partition: int
    """Of the dead letters; also of the topic it came from."""
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, str]

    @property
    def place(self) -> str:
        """Return topic:partition:offset among the dead letters: its name."""
        return f"{self.topic.dead_letters}:{self.partition}:{self.offset}"

    @property
    def reason(self) -> str:
        """Return why it was set aside."""
        return self.headers.get(REASON_HEADER, "no reason is given")

    @property
    def kind(self) -> str:
        """Return the reason without what differs from letter to letter: numbers and what is quoted."""
        head, colon, _ = self.reason.partition(":")
        return head if colon and head.isidentifier() else VARIABLE.sub("…", self.reason)[:100]

    def described(self) -> dict[str, Any]:
        """Return it as JSON values: bytes in hex, the record where they are one."""
        found: dict[str, Any] = {
            "topic": self.topic.name,
            "partition": self.partition,
            "offset": self.offset,
            "time": datetime.fromtimestamp(self.timestamp_ms / 1_000, UTC).isoformat(timespec="milliseconds"),
            "stage": self.headers.get(STAGE_HEADER),
            "source": self.headers.get(SOURCE_HEADER),
            "reason": self.reason,
            "poison": POISON_HEADER in self.headers,
            "key": None if self.key is None else self.key.decode("utf-8", "replace"),
            "bytes": None if self.value is None else self.value.hex(),
        }
        try:
            found["record"] = readable(decode(self.value, self.topic.record))
        except SchemaError as error:
            found["undecodable"] = str(error)
        return found

    def text(self) -> str:
        """Return it in words, made fit for a terminal."""
        facts = self.described()
        value = "no bytes" if self.value is None else f"{len(self.value)} bytes  {_escaped(self.value)}"
        lines = [
            f"{self.place}  {facts['time']}  set aside by {facts['stage']}, from {facts['source']}",
            f"  reason  {facts['reason']}",
            f"  key     {facts['key']}",
            f"  value   {value}",
        ]
        if "record" in facts:
            lines.append(f"  record  {json.dumps(facts['record'])[:2_000]}")
        return "\n".join(map(printable, lines))


@dataclass(frozen=True, slots=True)
class Claim:
    """Who is about to send letters back, and where the topic ended before."""

    session: str
    offset: int
    """Of the claim itself."""
    timestamp_ms: int
    end: int
    """Of the partition that the letters go back to: none of them lies before it by this claim."""


@dataclass(slots=True)
class Box:
    """The dead letters of one partition of one topic."""

    topic: Topic
    partition: int
    letters: list[Letter] = field(default_factory=list)
    claims: dict[int, list[Claim]] = field(default_factory=dict)
    """By a letter's offset, in the order of the log."""
    redriven: set[int] = field(default_factory=set)
    """Offsets of the letters that have gone back."""
    next: int = 0
    """Where reading goes on."""

    @property
    def waiting(self) -> list[Letter]:
        """Return the letters that have not gone back."""
        return [letter for letter in self.letters if letter.offset not in self.redriven]

    def take(self, message: Message) -> None:
        """Take one message of the partition."""
        headers = {name: (value or b"").decode("utf-8", "replace") for name, value in message.headers() or []}
        self.next = message.offset() + 1
        note = headers.get(NOTE_HEADER)
        if note is None:
            self.letters.append(
                Letter(
                    self.topic,
                    self.partition,
                    message.offset(),
                    message.timestamp()[1],
                    message.key(),
                    message.value(),
                    headers,
                )
            )
            return
        try:
            facts = json.loads(message.value() or b"")
            offsets = [int(offset) for offset in facts["letters"]]
            if note == "receipt":
                self.redriven.update(offsets)
            else:
                claim = Claim(str(facts["session"]), message.offset(), message.timestamp()[1], int(facts["end"]))
                for offset in offsets:
                    self.claims.setdefault(offset, []).append(claim)
        except (ValueError, KeyError, TypeError):
            return  # whoever wrote that, it was not us


class DeadLetters:
    """Reads the dead letters of topics. A context manager.

    Raises BrokerError where the broker does not answer or a topic is missing.
    """

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        reach(kafka)
        self.names = names
        self._consumer = Consumer(
            kafka.librdkafka(log_level=0, **{"group.id": names.full("tamiyo-dlq"), "enable.auto.commit": False})
        )

    def __enter__(self) -> "DeadLetters":
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def boxes(self, topics: Sequence[Topic] = CATALOGUE, tell: Callable[[str], None] = lambda _: None) -> list[Box]:
        """Return everything that lies there now, a box a partition that holds anything; `tell` hears of progress."""
        found: list[Box] = []
        for topic in topics:
            boxes = [Box(topic, number) for number in self._partitions(self.names.full(topic.dead_letters))]
            for box in boxes:
                self.read_on(box)
            found += [box for box in boxes if box.letters]
            count = sum(len(box.letters) for box in boxes)
            if count:
                tell(f"{topic.dead_letters}: {count:,} letters read")
        return found

    def read_on(self, box: Box) -> None:
        """Read what a box has got since it was read last."""
        for message in self.messages(self.names.full(box.topic.dead_letters), box.partition, box.next):
            box.take(message)

    def messages(self, full: str, partition: int, first: int) -> Iterator[Message]:
        """Yield the messages of a partition from an offset to where it ends now."""
        begin, end = self.marks(full, partition)
        if max(first, begin) >= end:
            return
        start = max(first, begin)
        self._consumer.assign([TopicPartition(full, partition, start if start > begin else OFFSET_BEGINNING)])
        deadline = time.monotonic() + READ_PATIENCE_S
        try:
            while True:
                message = self._consumer.poll(POLL_S)
                if message is not None and message.error() is None:
                    deadline = time.monotonic() + READ_PATIENCE_S
                    if message.offset() < end:
                        yield message
                    if message.offset() + 1 >= end:
                        return
                elif message is not None and not of_the_group(message.error()):
                    if message.error().code() != KafkaError._PARTITION_EOF:
                        raise BrokerError(f"reading {full}: {message.error().str()}")
                elif self._consumer.position([TopicPartition(full, partition)])[0].offset >= end:
                    return  # the last offsets are of a transaction, or compacted
                elif time.monotonic() > deadline:
                    raise BrokerError(f"{full}/{partition} could not be read to its end, offset {end}")
        finally:
            self._consumer.unassign()

    def marks(self, full: str, partition: int) -> tuple[int, int]:
        """Return the first offset of a partition, and the one that comes next."""
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        while True:
            try:
                place = TopicPartition(full, partition)
                low, high = self._consumer.get_watermark_offsets(place, timeout=REQUEST_TIMEOUT_S)
            except KafkaException as error:
                if error.args[0].code() not in PASSING or time.monotonic() > deadline:
                    raise BrokerError(f"the ends of {full} cannot be read: {error.args[0].str()}") from error
                time.sleep(POLL_S)
            else:
                return int(low), int(high)

    def _partitions(self, full: str) -> list[int]:
        try:
            # All topics: to name one that is missing would make it, on a broker that makes topics on demand.
            topic = self._consumer.list_topics(timeout=REQUEST_TIMEOUT_S).topics.get(full)
        except KafkaException as error:
            raise BrokerError(f"the broker does not answer: {error.args[0].str()}") from error
        return sorted(topic.partitions) if topic is not None else []


def chosen(names: TopicNames, wanted: Sequence[str]) -> list[Topic]:
    """Return the topics of these names, with or without `.dlq` and the prefix; all for none.

    Raises ConfigurationError for one that the catalogue does not have.
    """
    found = []
    for name in wanted:
        bare = names.bare(name).removesuffix(".dlq")
        if bare not in BY_NAME:
            raise ConfigurationError(f"no topic {name!r} in the catalogue; `tamiyo topics list` names them")
        found.append(BY_NAME[bare])
    return found or list(CATALOGUE)


def _escaped(value: bytes) -> str:
    text = repr(value[:SHOWN_BYTES])[2:-1]
    return text if len(value) <= SHOWN_BYTES else f"{text} ..."
