"""One dead letter, and the letters of one partition with what became of them."""

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Message

from tamiyo.schemas.codec import decode
from tamiyo.schemas.display import printable
from tamiyo.schemas.errors import SchemaError
from tamiyo.schemas.topics import Topic
from tamiyo.streams.admin.topic_tail import to_json_values
from tamiyo.streams.headers import POISON_HEADER, REASON_HEADER, SOURCE_HEADER, STAGE_HEADER

NOTE_HEADER = "tamiyo-redrive"
"""On a note of a redrive: `claim` or `receipt`. Its value is JSON."""
SHOWN_BYTES = 160  # of a letter, on a terminal
VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|\b\d[\w.+-]*\b")


@dataclass(frozen=True, slots=True)
class DeadLetter:
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
            found["record"] = to_json_values(decode(self.value, self.topic.record))
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
class RedriveClaim:
    """Who is about to send letters back, and where the topic ended before."""

    session: str
    offset: int
    """Of the claim itself."""
    timestamp_ms: int
    end: int
    """Of the partition that the letters go back to: none of them lies before it by this claim."""


@dataclass(slots=True)
class DeadLetterPartition:
    """The dead letters of one partition of one topic."""

    topic: Topic
    partition: int
    letters: list[DeadLetter] = field(default_factory=list)
    claims: dict[int, list[RedriveClaim]] = field(default_factory=dict)
    """By a letter's offset, in the order of the log."""
    redriven: set[int] = field(default_factory=set)
    """Offsets of the letters that have gone back."""
    next: int = 0
    """Where reading goes on."""

    @property
    def waiting(self) -> list[DeadLetter]:
        """Return the letters that have not gone back."""
        return [letter for letter in self.letters if letter.offset not in self.redriven]

    def take(self, message: Message) -> None:
        """Take one message of the partition."""
        headers = {name: (value or b"").decode("utf-8", "replace") for name, value in message.headers() or []}
        self.next = message.offset() + 1
        note = headers.get(NOTE_HEADER)
        if note is None:
            self.letters.append(
                DeadLetter(
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
                claim = RedriveClaim(str(facts["session"]), message.offset(), message.timestamp()[1], int(facts["end"]))
                for offset in offsets:
                    self.claims.setdefault(offset, []).append(claim)
        except (ValueError, KeyError, TypeError):
            return  # whoever wrote that, it was not us


def _escaped(value: bytes) -> str:
    text = repr(value[:SHOWN_BYTES])[2:-1]
    return text if len(value) <= SHOWN_BYTES else f"{text} ..."
