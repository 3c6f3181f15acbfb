"""Names of the Kafka message headers that stages write, and read back after a restart."""

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
END_HEADER = "tamiyo-end"
"""Marks the end of a partition in a replay; such a message has no value."""
END_MARKER_KEY = END_HEADER.encode()
"""Key of an end marker: a Kafka message needs a key or a value."""
END_MARKER: list[tuple[str, bytes]] = [(END_HEADER, b"1")]
"""Headers of an end marker."""

Headers = list[tuple[str, bytes]]
"""Headers of a message to publish."""
KeyValueHeaders = tuple[bytes | None, bytes | None, Headers]
"""A message to publish, without its topic and partition."""
