"""A dead letter, and the dead letters of one partition with their redrive state."""

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
"""Marks a redrive's note among the dead letters: `claim` or `receipt`. The note's value is JSON."""
SHOWN_BYTES = 160  # of a value, on a terminal
VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|\b\d[\w.+-]*\b")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message that a stage rejected, with its original bytes."""

    topic: Topic
    """Topic it was rejected from."""
    partition: int
    """Partition of the dead-letter topic, and of the topic it was rejected from."""
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, str]

    @property
    def place(self) -> str:
        """Return its name: topic:partition:offset on the dead-letter topic."""
        return f"{self.topic.dead_letters}:{self.partition}:{self.offset}"

    @property
    def reason(self) -> str:
        """Return why it was rejected."""
        return self.headers.get(REASON_HEADER, "no reason is given")

    @property
    def kind(self) -> str:
        """Return the reason without numbers and quotations, so that equal failures have equal kinds."""
        head, colon, _ = self.reason.partition(":")
        return head if colon and head.isidentifier() else VARIABLE.sub("…", self.reason)[:100]

    def described(self) -> dict[str, Any]:
        """Return it as JSON values: bytes in hex, and the record if the value decodes."""
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
        """Return a description that is safe to print on a terminal."""
        described = self.described()
        value = "no bytes" if self.value is None else f"{len(self.value)} bytes  {_escaped(self.value)}"
        rows = [
            f"{self.place}  {described['time']}  rejected by {described['stage']}, from {described['source']}",
            f"  reason  {described['reason']}",
            f"  key     {described['key']}",
            f"  value   {value}",
        ]
        if "record" in described:
            rows.append(f"  record  {json.dumps(described['record'])[:2_000]}")
        return "\n".join(map(printable, rows))


@dataclass(frozen=True, slots=True)
class RedriveClaim:
    """A note that a session is about to republish dead letters."""

    session: str
    offset: int
    """Offset of the claim itself."""
    timestamp_ms: int
    end: int
    """End of the source partition at that time: nothing republished under this claim lies before it."""


@dataclass(slots=True)
class DeadLetterPartition:
    """One partition of a dead-letter topic, as far as it was read."""

    topic: Topic
    partition: int
    dead_letters: list[DeadLetter] = field(default_factory=list)
    claims: dict[int, list[RedriveClaim]] = field(default_factory=dict)
    """By a dead letter's offset, in log order."""
    redriven: set[int] = field(default_factory=set)
    """Offsets of the dead letters that were republished."""
    next: int = 0
    """Next offset to read."""

    @property
    def waiting(self) -> list[DeadLetter]:
        """Return the dead letters that were not republished."""
        return [each for each in self.dead_letters if each.offset not in self.redriven]

    def add(self, message: Message) -> None:
        """Add the next message of the partition: a dead letter or a redrive's note."""
        headers = {name: (value or b"").decode("utf-8", "replace") for name, value in message.headers() or []}
        self.next = message.offset() + 1
        note = headers.get(NOTE_HEADER)
        if note is None:
            self.dead_letters.append(
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
            fields = json.loads(message.value() or b"")
            offsets = [int(offset) for offset in fields["letters"]]
            if note == "receipt":
                self.redriven.update(offsets)
            else:
                claim = RedriveClaim(
                    str(fields["session"]), message.offset(), message.timestamp()[1], int(fields["end"])
                )
                for offset in offsets:
                    self.claims.setdefault(offset, []).append(claim)
        except (ValueError, KeyError, TypeError):
            return  # not written by a redrive


def _escaped(value: bytes) -> str:
    text = repr(value[:SHOWN_BYTES])[2:-1]
    return text if len(value) <= SHOWN_BYTES else f"{text} ..."
