"""Names of the Kafka message headers that stages write, and read back after a restart.

Names that begin with `tamiyo-` are Tamiyo's. All others are the producer's own, and pass through a dead letter and its
redrive unchanged, for example those of a trace.
"""

from collections.abc import Iterable

ID_HEADER = "tamiyo-id"
"""Deterministic id of an output."""
STAGE_HEADER = "tamiyo-stage"
"""Name of the stage that published the message."""
SOURCE_HEADER = "tamiyo-source"
"""topic:partition:offset of the input that closed the output."""
POSITIONS_HEADER = "tamiyo-positions"
"""topic=offset, comma-separated: the highest next offset of each input that any worker had reached."""
INSIDE_HEADER = "tamiyo-inside"
"""Short ids of the inputs that an output contains, concatenated."""
REASON_HEADER = "tamiyo-reason"
"""Why a message was rejected."""
POISON_HEADER = "tamiyo-poison"
"""Marks the dead letter of a record that repeatedly crashed its stage."""
OUTPUT_HEADER = "tamiyo-output"
"""On the dead letter of an output that is larger than a message may be: the topic that it was for."""
CUT_HEADER = "tamiyo-cut"
"""On a dead letter that would be larger than a message may be: the bytes that it has no value for."""
TIME_HEADER = "tamiyo-time"
"""When a message was rejected, milliseconds since the epoch."""
OMITTED_HEADER = "tamiyo-omitted"
"""How many headers of a rejected message did not fit beside its value, and were left out."""
REDRIVEN_HEADER = "tamiyo-redriven"
"""On a message that a redrive sent back: its place on the dead-letter topic."""
NOTE_HEADER = "tamiyo-redrive"
"""Marks a redrive's note among the dead letters: `claim` or `receipt`. The note's value is JSON."""
END_HEADER = "tamiyo-end"
"""Marks the end of a partition in a replay; such a message has no value."""
END_MARKER_KEY = END_HEADER.encode()
"""Key of an end marker: a Kafka message needs a key or a value."""
END_MARKER: list[tuple[str, bytes | None]] = [(END_HEADER, b"1")]
"""Headers of an end marker."""

RESERVED = "tamiyo-"
"""What the names of all headers above begin with."""
KEPT = "tamiyo-kept-"
"""Before the name of a reserved header that a rejected message had: beside it stands the reject's own of that name."""

Headers = list[tuple[str, bytes | None]]
"""Headers of a message to publish."""
KeyValueHeaders = tuple[bytes | None, bytes | None, Headers]
"""A message to publish, without its topic and partition."""


def kept(headers: Iterable[tuple[str, bytes | None]]) -> Headers:
    """Return the headers of a message as its dead letter carries them: all, in order, reserved names after `KEPT`."""
    return [(f"{KEPT}{name}" if name.startswith(RESERVED) else name, value) for name, value in headers]


def restored(headers: Iterable[tuple[str, bytes | None]]) -> Headers:
    """Return the headers that the rejected message had, of those of its dead letter."""
    return [
        (name.removeprefix(KEPT), value)
        for name, value in headers
        if name.startswith(KEPT) or not name.startswith(RESERVED)
    ]
