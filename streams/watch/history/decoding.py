"""Decodes messages as the history takes them: no more of each than some view needs."""

from collections.abc import Callable
from typing import Any

from tamiyo.schemas.codec import decode
from tamiyo.schemas.topics import (
    BY_NAME,
    CACHE_HIT_RATES,
    EXPERIENCE,
    GRAPHS,
    KERNEL_PERFORMANCE,
    LAYER_HEALTH,
    SIGNALS,
    WINDOWS,
)
from tamiyo.streams.watch.history.frames import GraphFrame, LayerFrame, WindowFrame

COUNTED = frozenset(topic.name for topic in (KERNEL_PERFORMANCE, CACHE_HIT_RATES, SIGNALS, EXPERIENCE))
"""Topics of which no view shows a record: they make most of the traffic, and only their number counts."""
FRAMES: dict[str, Callable[[bytes | None], Any]] = {
    LAYER_HEALTH.name: LayerFrame.decode,
    GRAPHS.name: GraphFrame.decode,
    WINDOWS.name: WindowFrame.decode,
}


def decoded(topic: str, value: bytes | None) -> Any:
    """Return a message's record, or what the history keeps of it; None for a tombstone and for what only counts.

    Args:
        topic: Name in the catalogue.
        value: The message's value.

    Raises:
        SchemaError: The value is no record of the topic.
        RegistryError: The registry is needed to decode it, and unavailable.
    """
    if value is None or topic in COUNTED:
        return None
    frame = FRAMES.get(topic)
    return decode(value, BY_NAME[topic].record) if frame is None else frame(value)
