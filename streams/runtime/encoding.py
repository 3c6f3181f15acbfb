"""Encode what a stage publishes: topic, key, bytes, and the headers that a restart reads back."""

import time
from typing import Any

from tamiyo.schemas.codec import encode
from tamiyo.streams.headers import (
    END_MARKER,
    END_MARKER_KEY,
    ID_HEADER,
    INSIDE_HEADER,
    POISON_HEADER,
    POSITIONS_HEADER,
    REASON_HEADER,
    SOURCE_HEADER,
    STAGE_HEADER,
    TIME_HEADER,
)
from tamiyo.streams.runtime.end_of_stream import EndOfStream
from tamiyo.streams.stages.base import SHORT_ID, Output, Reject

MAX_INSIDE = 1_000  # ids named, 16 kB: a message has an end
MAX_REASON = 2_000  # bytes of it in a header

Headers = list[tuple[str, bytes]]


def key_of(each: Output | Reject) -> tuple[str, str]:
    """Return (topic, identity), under which a thing is said once."""
    if isinstance(each, Output):
        return each.topic.name, each.identity
    return _aside(each), f"{each.source.topic}:{each.source.offset}"


def message_of(
    each: Output | Reject | EndOfStream, stage: str, positions: bytes | None = None
) -> tuple[str, bytes | None, bytes | None, Headers]:
    """Return catalogue topic, key, value and headers of what `stage` says, having read its inputs to `positions`.

    Without positions it is nothing that the stage reads back.
    """
    headers: Headers = [(STAGE_HEADER, stage.encode())]
    if positions is not None:
        headers.append((POSITIONS_HEADER, positions))
    if isinstance(each, EndOfStream):
        return each.topic.name, END_MARKER_KEY, None, [*headers, *END_MARKER]
    source = each.source
    if source is not None:
        headers.append((SOURCE_HEADER, f"{source.topic}:{source.partition}:{source.offset}".encode()))
    if isinstance(each, Output):
        headers.append((ID_HEADER, each.identity.encode()))
        if each.member_ids:
            headers.append((INSIDE_HEADER, "".join(name[:SHORT_ID] for name in each.member_ids[:MAX_INSIDE]).encode()))
        record: Any = each.record
        return each.topic.name, record.run_id.encode(), encode(each.record), headers
    headers.append((REASON_HEADER, each.reason.encode()[:MAX_REASON]))
    headers.append((TIME_HEADER, str(time.time_ns() // 1_000_000).encode()))
    if each.poison:
        headers.append((POISON_HEADER, b"1"))
    return _aside(each), each.source.key, each.source.raw, headers


def _aside(each: Reject) -> str:
    return f"{each.source.topic}.late" if each.late else f"{each.source.topic}.dlq"
