"""Encode what a stage publishes: topic, key, bytes, and the headers that a restart reads back."""

from collections.abc import Mapping
from typing import Any

from tamiyo.schemas.analysis import HealthSignals
from tamiyo.schemas.codec import encode
from tamiyo.schemas.direct.signals import encode_signals
from tamiyo.schemas.kafka import MAX_MESSAGE_BYTES
from tamiyo.streams.headers import (
    END_MARKER,
    END_MARKER_KEY,
    ID_HEADER,
    INSIDE_HEADER,
    OMITTED_HEADER,
    POISON_HEADER,
    POSITIONS_HEADER,
    REASON_HEADER,
    SOURCE_HEADER,
    STAGE_HEADER,
    TIME_HEADER,
    Headers,
    KeyValueHeaders,
    kept,
)
from tamiyo.streams.process import steady_clock
from tamiyo.streams.runtime.end_of_stream import EndOfStream
from tamiyo.streams.stages.base import SHORT_ID, Incoming, Output, Reject

MAX_MEMBER_IDS = 1_000  # 16 kB: a message's size has a limit
MAX_REASON = 2_000  # bytes of a header
OWN_HEADERS = 16_384  # bytes, more than all headers of a reject that are not its source's, and Kafka's overhead
HEADER_OVERHEAD = 10  # bytes, the two lengths of a header


def key_of(each: Output | Reject) -> tuple[str, str]:
    """Return (topic, identity), under which an output or a reject is published once."""
    if isinstance(each, Output):
        return each.topic.name, each.identity
    return _rejected_to(each), f"{each.source.topic}:{each.source.offset}"


def encode_positions(positions: Mapping[str, int], reached: Mapping[str, int]) -> bytes:
    """Return the positions header: of each input the highest offset that this worker or an earlier one `reached`."""
    return ",".join(f"{topic}={max(offset, reached.get(topic, 0))}" for topic, offset in positions.items()).encode()


def message_of(
    each: Output | Reject | EndOfStream, stage: str, positions: bytes | None = None
) -> tuple[str, KeyValueHeaders]:
    """Return the catalogue's topic, and key, value and headers of what `stage` publishes.

    `positions` is the positions header. Without it the message is not one that a stage reads back.
    """
    headers: Headers = [(STAGE_HEADER, stage.encode())]
    if positions is not None:
        headers.append((POSITIONS_HEADER, positions))
    if isinstance(each, EndOfStream):
        return each.topic.name, (END_MARKER_KEY, None, [*headers, *END_MARKER])
    source = each.source
    if source is not None:
        headers.append((SOURCE_HEADER, f"{source.topic}:{source.partition}:{source.offset}".encode()))
    if isinstance(each, Output):
        headers.append((ID_HEADER, each.identity.encode()))
        if each.member_ids:
            members = "".join(name[:SHORT_ID] for name in each.member_ids[:MAX_MEMBER_IDS])
            headers.append((INSIDE_HEADER, members.encode()))
        record: Any = each.record
        value = encode_signals(record) if isinstance(record, HealthSignals) else encode(record)
        return each.topic.name, (record.run_id.encode(), value, headers)
    headers.append((REASON_HEADER, each.reason.encode()[:MAX_REASON]))
    headers.append((TIME_HEADER, str(steady_clock.time_ms()).encode()))
    if each.poison:
        headers.append((POISON_HEADER, b"1"))
    headers += _source_headers(each.source)
    return _rejected_to(each), (each.source.key, each.source.raw, headers)


def _source_headers(source: Incoming) -> Headers:
    """Return the headers of a rejected message, without those that would make the dead letter too large."""
    room = MAX_MESSAGE_BYTES - OWN_HEADERS - len(source.key or b"") - len(source.raw or b"")
    found: Headers = []
    omitted = 0
    for name, value in kept(source.headers):
        size = len(name.encode()) + len(value or b"") + HEADER_OVERHEAD
        if size <= room:
            found.append((name, value))
            room -= size
        else:
            omitted += 1
    return [*found, (OMITTED_HEADER, str(omitted).encode())] if omitted else found


def _rejected_to(each: Reject) -> str:
    return f"{each.source.topic}.late" if each.late else f"{each.source.topic}.dlq"
