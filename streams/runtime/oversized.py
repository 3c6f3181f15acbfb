"""What is larger than a message may be becomes a dead letter that names it, and the flow goes on.

An output that is too large is replaced by a dead letter of the input that closed it. Redriven after the limit was
raised, that input makes the output again where one input makes one output (`MADE_OF_ONE_INPUT`); other dead letters of
outputs are not redriven, since nothing would be made of them. A dead letter that is too large itself,
because of the record it quotes, keeps its headers and loses the value; the record is at the place in its header.
"""

from collections.abc import Collection
from typing import Any

from tamiyo.schemas.kafka import MAX_READ_BYTES
from tamiyo.streams.headers import (
    CUT_HEADER,
    ID_HEADER,
    OUTPUT_HEADER,
    POISON_HEADER,
    POSITIONS_HEADER,
    REASON_HEADER,
    SOURCE_HEADER,
    STAGE_HEADER,
    TIME_HEADER,
    KeyValueHeaders,
)
from tamiyo.streams.messages import MADE_OF_ONE_INPUT
from tamiyo.streams.runtime.encoding import message_of
from tamiyo.streams.stages.base import Incoming, Output, Reject

OWN_HEADERS = frozenset(
    (
        CUT_HEADER, ID_HEADER, OUTPUT_HEADER, POISON_HEADER, POSITIONS_HEADER,
        REASON_HEADER, SOURCE_HEADER, STAGE_HEADER, TIME_HEADER,
    )
)  # fmt: skip
"""Headers that a dead letter keeps when it is cut: a producer's own may be what makes it too large."""
LONGEST_KEY = 1_000  # bytes; a run's id has at most 200 characters
SETTING = "TAMIYO_WORKER_MAX_MESSAGE_BYTES"


def dead_letter_of(
    output: Output, stage: str, reason: str, place: Incoming, positions: bytes
) -> tuple[str, KeyValueHeaders]:
    """Return the dead letter of an output that is too large: its catalogue topic, and key, value and headers.

    Args:
        output: What could not be published.
        stage: Name of the stage that made it.
        reason: From `reason_of`.
        place: Names the topic and partition of the dead letter where time closed the output, not an input.
        positions: The positions header.
    """
    topic, (key, value, headers) = message_of(Reject(output.source or place, reason), stage, positions)
    headers = [*headers, (OUTPUT_HEADER, output.topic.name.encode()), (ID_HEADER, output.identity.encode())]
    if output.source is None:
        record: Any = output.record
        key, value = record.run_id.encode(), None
        headers = [each for each in headers if each[0] != SOURCE_HEADER]
    return topic, (key, value, headers)


def cut(dead_letter: KeyValueHeaders) -> KeyValueHeaders:
    """Return a dead letter without its value and its producer's headers."""
    key, value, headers = dead_letter
    own = [each for each in headers if each[0] in OWN_HEADERS]
    short = key if key is None or len(key) <= LONGEST_KEY else None
    return short, None, [*own, (CUT_HEADER, str(len(value or b"")).encode())]


def reason_of(output: Output, size: int, limit: int | None) -> str:
    """Return why an output becomes a dead letter, and what to do.

    Args:
        output: What could not be published.
        size: Its bytes as a message.
        limit: The bytes that this process may send; None if the broker refused it.
    """
    record: Any = output.record
    of_layers = getattr(record, "graph", record)
    layers = getattr(of_layers, "layers", None) or getattr(of_layers, "layer_id", None)
    of = f" of {len(layers):,} layers" if isinstance(layers, list | tuple) else ""
    allowed = f"{SETTING} allows {limit:,}" if limit is not None else "the broker refuses it"
    raised = f"Raise {SETTING}, and max.message.bytes of the topics (`tamiyo topics check` shows it), or watch"
    again = (
        "and redrive" if output.topic.name in MADE_OF_ONE_INPUT else "for later ones: no single record makes it again"
    )
    return f"OutputTooLarge: {output.topic.name} of run {record.run_id}{of} has {size:,} bytes, but {allowed}. " + (
        f"{raised} fewer layers, {again}" if size <= MAX_READ_BYTES else "No setting allows that: watch fewer layers"
    )


def was_oversized(output: Output, closed_by: Collection[tuple[str, int] | None] | None) -> bool:
    """Return whether an output became a dead letter before a restart, and was not made once more by a redrive.

    Args:
        output: What the stage returns.
        closed_by: Topic and offset of each input that closed the output when it was too large; None: it never was.
    """
    if closed_by is None:
        return False
    source = output.source
    # Read again, an input has its offset; redriven, it has a new one.
    return output.topic.name not in MADE_OF_ONE_INPUT or source is None or (source.topic, source.offset) in closed_by
