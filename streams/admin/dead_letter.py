"""A dead letter, and the dead letters of one partition with their redrive state.

A message that came too late for its window, on a `.late` topic, is a dead letter like those on a `.dlq` topic.
"""

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Message

from tamiyo.schemas.codec import decode
from tamiyo.schemas.display import printable
from tamiyo.schemas.errors import SchemaError
from tamiyo.schemas.topics import BY_NAME, Topic
from tamiyo.streams.admin.topic_tail import escaped_header, source_name, to_json_values
from tamiyo.streams.headers import (
    CUT_HEADER,
    NOTE_HEADER,
    OMITTED_HEADER,
    OUTPUT_HEADER,
    POISON_HEADER,
    REASON_HEADER,
    REDRIVEN_HEADER,
    RESERVED,
    SOURCE_HEADER,
    STAGE_HEADER,
    Headers,
    restored,
)
from tamiyo.streams.messages import MADE_OF_ONE_INPUT

SHOWN_BYTES = 160  # of a value, on a terminal
VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|\b\d[\w.+-]*\b")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message that a stage rejected, with its original bytes."""

    letters: str
    """Dead-letter topic, without prefix: `.dlq` or `.late`."""
    partition: int
    """Partition of the dead-letter topic, and of the topic it was rejected from."""
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def topic(self) -> Topic:
        """Return the topic it was rejected from."""
        return BY_NAME[source_name(self.letters)]

    @property
    def place(self) -> str:
        """Return its name: topic:partition:offset on the dead-letter topic."""
        return f"{self.letters}:{self.partition}:{self.offset}"

    @property
    def reason(self) -> str:
        """Return why it was rejected."""
        return self._header(REASON_HEADER) or "no reason is given"

    @property
    def kind(self) -> str:
        """Return the reason without numbers and quotations, so that equal failures have equal kinds."""
        head, colon, _ = self.reason.partition(":")
        return head if colon and head.isidentifier() else VARIABLE.sub("…", self.reason)[:100]

    @property
    def producer_headers(self) -> Headers:
        """Return the headers that its producer gave it.

        Where a stage produced it, its reserved headers are left out: with them a restarted stage would take a copy for
        an output of its own.
        """
        own = self.topic.writer != "host"
        return [
            (name, value)
            for name, value in restored(self.headers)
            if not name.startswith(RESERVED) or not (own or name == REDRIVEN_HEADER)
        ]

    @property
    def sendable(self) -> bool:
        """Return whether it has what its producer sent.

        Not where that was too large for a dead letter, and not where it would not make the output that was too large:
        because time had closed it, or because it is made of several records.
        """
        output = self._header(OUTPUT_HEADER)
        if output is not None and (output not in MADE_OF_ONE_INPUT or self._header(SOURCE_HEADER) is None):
            return False
        return self._header(CUT_HEADER) is None

    def _header(self, name: str) -> str | None:
        found = next((value for key, value in self.headers if key == name), None)
        return None if found is None else found.decode("utf-8", "replace")

    def described(self) -> dict[str, Any]:
        """Return it as JSON values: bytes in hex, and the record if the value decodes."""
        found: dict[str, Any] = {
            "topic": self.topic.name,
            "late": self.letters == self.topic.late,
            "partition": self.partition,
            "offset": self.offset,
            "time": datetime.fromtimestamp(self.timestamp_ms / 1_000, UTC).isoformat(timespec="milliseconds"),
            "stage": self._header(STAGE_HEADER),
            "source": self._header(SOURCE_HEADER),
            "reason": self.reason,
            "poison": self._header(POISON_HEADER) is not None,
            "output": self._header(OUTPUT_HEADER),
            "cut_bytes": int(self._header(CUT_HEADER) or 0),
            "headers": [[name, escaped_header(value)] for name, value in restored(self.headers)],
            "omitted_headers": int(self._header(OMITTED_HEADER) or 0),
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
        if described["cut_bytes"]:
            value = f"{described['cut_bytes']} bytes were too large to keep; they are at {described['source']}"
        rows = [
            f"{self.place}  {described['time']}  rejected by {described['stage']}, from {described['source']}",
            f"  reason  {described['reason']}",
            f"  key     {'no key' if self.key is None else _escaped(self.key)}",
            *(
                f"  header  {name}: {'no value' if value is None else _escaped(value)}"
                for name, value in restored(self.headers)
            ),
            f"  value   {value}",
        ]
        if described["omitted_headers"]:
            rows.insert(-1, f"  header  {described['omitted_headers']} more did not fit beside the value")
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

    letters: str
    """Dead-letter topic, without prefix: `.dlq` or `.late`."""
    partition: int
    dead_letters: list[DeadLetter] = field(default_factory=list)
    claims: dict[int, list[RedriveClaim]] = field(default_factory=dict)
    """By a dead letter's offset, in log order."""
    redriven: set[int] = field(default_factory=set)
    """Offsets of the dead letters that were republished."""
    next: int = 0
    """Next offset to read."""

    @property
    def topic(self) -> Topic:
        """Return the topic whose messages were rejected."""
        return BY_NAME[source_name(self.letters)]

    @property
    def waiting(self) -> list[DeadLetter]:
        """Return the dead letters that were not republished."""
        return [each for each in self.dead_letters if each.offset not in self.redriven]

    def add(self, message: Message) -> None:
        """Add the next message of the partition: a dead letter or a redrive's note."""
        headers = list(message.headers() or [])
        self.next = message.offset() + 1
        note = next((value for name, value in headers if name == NOTE_HEADER), None)
        if note is None:
            self.dead_letters.append(
                DeadLetter(
                    self.letters,
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
            if note == b"receipt":
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
